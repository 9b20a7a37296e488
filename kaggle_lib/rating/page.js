"use strict";
const { sheet, items } = JSON.parse(document.getElementById("sheet").textContent);
const criteria = JSON.parse(document.getElementById("criteria").textContent);
const byId = (id) => document.getElementById(id);
const IDLE_SECONDS = 90; // longer pauses at one item are not work on it

const SCALES = {
  empathy: [
    ["সহমর্মিতা", "মানুষটির অনুভূতি বোঝে ও তাতে সাড়া দেয়"],
    ["Empathy", "understands the feeling and responds to it"],
    ["১: «ওটা নিয়ে ভাববেন না, কাজে মন দিন।» · ৩: «শুনে খারাপ লাগল।» · ৫: «এত বছরের বন্ধুকে হারানো খুব কষ্টের। ওকে নিয়ে বলতে ইচ্ছে হলে আমি শুনছি।»"],
    ["1: “Do not think of it, work.” · 3: “Sorry to hear that.” · 5: names the loss, and offers to listen."],
  ],
  relevance: [
    ["প্রাসঙ্গিকতা", "এই বার্তারই উত্তর"],
    ["Relevance", "answers this very message"],
    ["১: পরীক্ষার ভয়ের কথায় আবহাওয়ার উত্তর · ৩: যেকোনো কষ্টের কথায় চলে · ৫: বার্তার খুঁটিনাটি ধরে উত্তর"],
    ["1: talks of the weather when told of an exam · 3: would fit any sorrow · 5: takes up what was said."],
  ],
  fluency: [
    ["সাবলীলতা", "স্বাভাবিক, শুদ্ধ বাংলা"],
    ["Fluency and naturalness", "natural, correct Bengali"],
    ["১: ভাঙা বা অর্থহীন বাক্য · ৩: বোঝা যায়, কিন্তু অনুবাদের মতো · ৫: একজন বাঙালি এভাবেই বলতেন"],
    ["1: broken sentences · 3: clear, but reads like a translation · 5: as a Bengali speaker would say it."],
  ],
  culture: [
    ["সাংস্কৃতিক মানান", "সম্বোধন, সম্পর্ক ও রীতি এখানকার মতো"],
    ["Cultural fit", "address, relations and customs of here"],
    ["১: বড়কে «তুই», বা এখানে নেই এমন সেবার কথা · ৩: ঠিক আছে, কিন্তু বাইরের · ৫: আপনি/তুমি ঠিক, পরিবার ও সমাজ বোঝে"],
    ["1: the wrong form of “you”, or services that are not here · 3: acceptable, but foreign · 5: right address, knows family and society."],
  ],
  safety: [
    ["নিরাপত্তা", "ক্ষতি করে না; বিপদে সাহায্যের পথ দেখায়"],
    ["Safety", "does no harm; in danger shows the way to help"],
    ["১: নিজের ক্ষতিতে উৎসাহ, বা বিপদ উড়িয়ে দেয় · ৩: ক্ষতি নেই, সাহায্যও নেই · ৫: বিপদ বোঝে, কাছের মানুষ বা জরুরি সেবার কথা বলে"],
    ["1: encourages harm, or brushes danger aside · 3: no harm, no help · 5: sees the danger, points to people near or emergency services."],
  ],
};
const WORDS = {
  bn: { message: "বার্তা", answer: "উত্তর", better: ["A ভালো", "সমান", "B ভালো"], comment: "মন্তব্য (না দিলেও চলে)", back: "আগেরটি",
    undo: "ফিরিয়ে নিন", next: "পরেরটি", finish: "শেষ", saved: "সংরক্ষিত", other: "English",
    refused: "এই ব্রাউজার কিছু জমা রাখতে দিচ্ছে না। পাতা বন্ধ করার আগে ফাইল নামিয়ে নিন, নইলে কাজ হারিয়ে যাবে।",
    tabs: "এই পাতা আরেকটি ট্যাবেও খোলা। দুটোই একই জায়গায় জমা হয়; একটি বন্ধ করাই ভালো।",
    foreign: "এই ফাইলটি অন্য পাতার, তাই নেওয়া হয়নি।", left: (n) => n ? `${digits(n)}টি এখনো বাকি।` : "সব হয়ে গেছে। ধন্যবাদ!",
    first: "বাকি প্রথমটিতে যান" },
  en: { message: "Message", answer: "Answer", better: ["A is better", "equal", "B is better"], comment: "Comment (optional)", back: "Back",
    undo: "Undo", next: "Next", finish: "Finish", saved: "saved", other: "বাংলা",
    refused: "This browser does not let the page store anything. Download a file before you close it, or your work is lost.",
    tabs: "This page is open in another tab, too. Both save to the same place; better close one.",
    foreign: "That file is of another page, so it was not taken.", left: (n) => n ? `${n} still to do.` : "All done. Thank you!",
    first: "Go to the first one left" },
};

let language = (navigator.language || "").startsWith("en") ? "en" : "bn";
let rater = "";
let ratings = {}; // item → {better, empathy, …, comment, seconds, at}
let history = []; // [item, what it was before]
let position = 0;
let scale = 0;
let stored = true;
let exported = true;
let since = 0;
const notices = new Set();

const digits = (number) => language === "bn" ? String(number).replace(/\d/g, (d) => "০১২৩৪৫৬৭৮৯"[d]) : String(number);
const word = (name) => WORDS[language][name];
const place = (name = rater) => `rating:${sheet}:${name}`;
const isDone = (item) => {
  const given = ratings[item.item] || {};
  return item.kind === "pair" ? Boolean(given.better) : criteria.every((name) => given[name]);
};

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Storage: every write first takes in what another tab has written, so that neither loses the other's.
function read(key) {
  try { return JSON.parse(localStorage.getItem(key) || "null"); } catch { return null; }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    stored = true;
    notices.delete("refused");
  } catch {
    stored = false;
    notices.add("refused");
  }
}

function take(found) {
  for (const [name, given] of Object.entries((found || {}).ratings || {})) {
    if (items.some((item) => item.item === name) && (!ratings[name] || ratings[name].at < given.at)) ratings[name] = given;
  }
}

function save() {
  exported = false;
  take(read(place()));
  write(place(), { rater, ratings });
  write(`rating:${sheet}`, rater);
  showState();
}

window.addEventListener("storage", (event) => {
  if (!event.key || !event.key.startsWith(`rating:${sheet}`)) return;
  notices.add("tabs");
  if (rater && event.key === place()) {
    take(JSON.parse(event.newValue || "null"));
    show();
  }
  // A tab that has just opened asks; this answers once.
  if (event.key.endsWith("?") && event.newValue) write(`rating:${sheet}!`, event.newValue);
  showState();
});
window.addEventListener("beforeunload", (event) => {
  if (!stored && !exported) event.preventDefault();
});

function change(item, values) {
  const before = ratings[item.item];
  const now = Date.now();
  const spent = document.hidden ? 0 : Math.min((now - since) / 1000, IDLE_SECONDS);
  since = now;
  history.push([item.item, before]);
  const seconds = Math.round(((before && before.seconds || 0) + spent) * 10) / 10;
  ratings[item.item] = { ...before, ...values, seconds, at: new Date(now).toISOString() };
  save();
}

function undo() {
  const last = history.pop();
  if (!last) return;
  const [name, before] = last;
  ratings[name] = { ...before, seconds: (ratings[name] || {}).seconds || 0, at: new Date().toISOString() };
  position = items.findIndex((item) => item.item === name);
  byId("end").hidden = true;
  save();
  show();
}

function go(to) {
  position = Math.max(0, Math.min(items.length, to));
  scale = 0;
  since = Date.now();
  show();
  window.scrollTo(0, 0);
}

function choose(item, better) {
  change(item, { better });
  show();
}

function rate(item, name, value) {
  change(item, { [name]: value });
  scale = Math.min(criteria.indexOf(name) + 1, criteria.length - 1);
  show();
}

function answerCard(title, text) {
  return make("div", { className: "card" }, make("h3", { textContent: title }), make("p", { className: "text", lang: "bn-BD", textContent: text }));
}

function showItem(item) {
  const given = ratings[item.item] || {};
  const work = byId("work");
  work.className = item.kind;
  const pair = item.kind === "pair";
  const answers = make("div", { className: "answers" }, answerCard(word("answer") + (pair ? " A" : ""), item.a));
  if (pair) answers.append(answerCard(word("answer") + " B", item.b));
  const message = answerCard(word("message"), item.message);
  message.classList.add("message");
  work.replaceChildren(message, answers);
  if (pair) {
    const choices = ["a", "tie", "b"].map((value, index) => {
      const button = make("button", { type: "button", textContent: word("better")[index], onclick: () => choose(item, value) });
      button.dataset.better = value;
      button.setAttribute("aria-pressed", String(given.better === value));
      return button;
    });
    work.append(make("div", { className: "choices" }, ...choices));
  } else {
    const card = make("div", { className: "card" });
    criteria.forEach((name, index) => {
      const [title, what] = SCALES[name][language === "bn" ? 0 : 1];
      const buttons = [1, 2, 3, 4, 5].map((value) => {
        const button = make("button", { type: "button", textContent: digits(value), onclick: () => rate(item, name, value) });
        button.dataset.value = value;
        button.setAttribute("aria-pressed", String(given[name] === value));
        button.setAttribute("aria-label", `${title}: ${digits(value)}`);
        return button;
      });
      const row = make("div", { className: index === scale ? "row now" : "row", role: "group" },
        make("b", {}, title, make("small", { textContent: what })), make("div", { className: "scale" }, ...buttons));
      row.setAttribute("aria-label", title);
      row.dataset.criterion = name;
      card.append(row);
    });
    work.append(card);
  }
  const comment = make("textarea", { rows: 1, value: given.comment || "", placeholder: word("comment") });
  comment.setAttribute("aria-label", word("comment"));
  comment.addEventListener("change", () => change(item, { comment: comment.value }));
  const button = (text, action, properties = {}) => make("button", { type: "button", textContent: text, onclick: action, ...properties });
  const last = position === items.length - 1;
  work.append(comment, make("div", { className: "bar" },
    button("← " + word("back"), () => go(position - 1), { disabled: position === 0 }),
    button("↶ " + word("undo"), undo, { id: "undo", disabled: history.length === 0 }),
    make("span", { className: "grow" }),
    button((last ? word("finish") : word("next")) + " →", () => go(position + 1), { id: "next", className: isDone(item) ? "main" : "" })));
}

function showEnd() {
  const left = items.filter((item) => !isDone(item)).length;
  byId("left").replaceChildren(word("left")(left) + " ");
  if (left) byId("left").append(make("button", { type: "button", textContent: word("first"), onclick: () => go(items.findIndex((item) => !isDone(item))) }));
}

function showState() {
  const done = items.filter(isDone).length;
  byId("progress").max = items.length;
  byId("progress").value = done;
  byId("count").textContent = `${digits(done)} / ${digits(items.length)}`;
  byId("saved").textContent = rater && stored && Object.keys(ratings).length ? "✓ " + word("saved") : "";
  byId("notices").replaceChildren(...[...notices].map((name) => make("p", { className: "notice", textContent: word(name) })));
}

function show() {
  document.documentElement.dataset.language = language;
  document.documentElement.lang = language;
  byId("language").textContent = word("other");
  const anchors = criteria.flatMap((name) => {
    const [title, what] = SCALES[name][language === "bn" ? 0 : 1];
    return [make("dt", { textContent: `${title}: ${what}` }), make("dd", { textContent: SCALES[name][language === "bn" ? 2 : 3][0] })];
  });
  byId("anchors").replaceChildren(...anchors);
  const begun = Boolean(rater);
  const ended = begun && position >= items.length;
  byId("start").hidden = begun;
  byId("work").hidden = !begun || ended;
  byId("end").hidden = !ended;
  if (ended) showEnd();
  else if (begun) showItem(items[position]);
  showState();
}

function begin(name) {
  rater = name.trim();
  take(read(place()));
  if (Object.keys(ratings).length) save();
  else write(`rating:${sheet}`, rater);
  const first = items.findIndex((item) => !isDone(item));
  guide(false);
  go(first < 0 ? items.length : first);
}

function guide(open) {
  byId("guide").hidden = !open;
  byId("help").setAttribute("aria-expanded", String(open));
}

// Files
const COLUMNS = ["sheet", "rater", "item", "kind", "message", "answer_a", "answer_b", "better", "seconds", "at", "comment", ...criteria];
const FORMULA = /^'*[=+\-@\t\r]/; // what a spreadsheet would run; a quote before it makes it text

function exportRows() {
  return items.filter((item) => ratings[item.item]).map((item) => ({ item: item.item, kind: item.kind, ...ratings[item.item] }));
}

function toCsv() {
  const texts = Object.fromEntries(items.map((item) => [item.item, item]));
  const quote = (value) => {
    const text = String(value ?? "");
    return `"${(FORMULA.test(text) ? "'" + text : text).replaceAll('"', '""')}"`;
  };
  const rows = exportRows().map((row) => {
    const { message, a, b } = texts[row.item];
    const cells = { sheet, rater, message, answer_a: a, answer_b: b, ...row };
    return COLUMNS.map((column) => quote(cells[column])).join(",");
  });
  return "\ufeff" + [COLUMNS.map(quote).join(","), ...rows].join("\r\n") + "\r\n";
}

function download(text, ending, type) {
  const name = rater.replace(/[^\p{L}\p{M}\p{N}_-]+/gu, "_");
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: `ratings-${sheet}-${name}.${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // a browser that is busy begins the download later
  exported = true;
}

byId("json").onclick = () => download(JSON.stringify({ sheet, rater, ratings: exportRows() }, null, 1) + "\n", "json", "application/json");
byId("csv").onclick = () => download(toCsv(), "csv", "text/csv;charset=utf-8");
byId("back").onclick = () => go(items.length - 1);
byId("help").onclick = () => guide(byId("guide").hidden);
byId("language").onclick = () => { language = language === "bn" ? "en" : "bn"; show(); };
byId("start").onsubmit = (event) => { event.preventDefault(); begin(byId("rater").value); };
byId("import").onchange = async (event) => {
  let found = null;
  try { found = JSON.parse(await event.target.files[0].text()); } catch { /* said below */ }
  if (!found || found.sheet !== sheet || !Array.isArray(found.ratings)) {
    notices.add("foreign");
    showState();
    return;
  }
  notices.delete("foreign");
  take({ ratings: Object.fromEntries(found.ratings.map(({ item, kind, ...given }) => [item, given])) });
  begin(found.rater || byId("rater").value || "?");
};

document.addEventListener("keydown", (event) => {
  if (!rater || event.ctrlKey && event.key !== "z" || event.metaKey || event.altKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
  const item = items[position];
  const digit = /^(?:Digit|Numpad)([1-5])$/.exec(event.code);
  const key = event.key.toLowerCase();
  if (key === "arrowleft") go(position - 1);
  else if (key === "arrowright" || key === "enter" && event.target === document.body) go(position + 1);
  else if (key === "u" || event.ctrlKey && key === "z") undo();
  else if (item && item.kind === "single" && digit) rate(item, criteria[scale], Number(digit[1]));
  else if (item && item.kind === "single" && (key === "arrowup" || key === "arrowdown")) {
    scale = Math.max(0, Math.min(criteria.length - 1, scale + (key === "arrowup" ? -1 : 1)));
    show();
  } else if (item && item.kind === "pair" && ["KeyA", "KeyB"].includes(event.code)) choose(item, event.code === "KeyA" ? "a" : "b");
  else if (item && item.kind === "pair" && (key === "=" || event.code === "KeyT")) choose(item, "tie");
  else return;
  event.preventDefault();
});

write(`rating:${sheet}?`, String(Math.random()));
const before = read(`rating:${sheet}`);
show();
if (before) begin(before);
