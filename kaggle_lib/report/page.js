// The page reads without this: it shows the value under a pointer, and opens what is folded before it is printed.
for (const panel of document.querySelectorAll(".panel")) {
  const line = panel.querySelector("polyline"), area = panel.querySelector(".area");
  if (!line) continue;
  const svg = area.querySelector("svg"), out = panel.querySelector("output"), cursor = svg.querySelector(".cursor");
  const [left, right] = svg.dataset.x.split(" ").map(Number), [low, high] = svg.dataset.y.split(" ").map(Number);
  const points = line.getAttribute("points").split(" ").map((one) => one.split(",").map(Number));
  area.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * 1000;
    const near = points.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best));
    const step = Math.round(left + (near[0] / 1000) * (right - left)), value = high - (near[1] / 1000) * (high - low);
    out.textContent = `${panel.dataset.unit} ${step.toLocaleString("en")}: ${value.toPrecision(4)}`;
    cursor.setAttribute("x1", `${near[0] / 10}%`);
    cursor.setAttribute("x2", `${near[0] / 10}%`);
    panel.classList.add("live");
  });
  area.addEventListener("pointerleave", () => { out.textContent = ""; panel.classList.remove("live"); });
}
const folded = () => document.querySelectorAll("details:not(.more):not([open])");
let opened = [];
addEventListener("beforeprint", () => { opened = [...folded()]; for (const one of opened) one.open = true; });
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
