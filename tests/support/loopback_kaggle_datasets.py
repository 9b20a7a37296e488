"""Kaggle's API for datasets and uploads, as the real `kaggle` client calls it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.loopback_kaggle_api import DENIED, Body, Refused, method
from support.loopback_kaggle_faults import Fault
from support.loopback_kaggle_records import Account, Dataset

if TYPE_CHECKING:
    from support.loopback_kaggle import LoopbackKaggle


@method
def start_blob_upload(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    token = f"blob-{kaggle.number()}"
    kaggle.blobs[token] = body["name"]
    return {"token": token, "createUrl": f"{kaggle.endpoint}/_upload/{token}"}


def dataset_of(kaggle: LoopbackKaggle, user: Account, owner: str | None, slug: str | None) -> Dataset:
    dataset = kaggle.datasets.get(f"{owner}/{slug}")
    if dataset is None or (dataset.private and owner != user.name):
        raise Refused(403, DENIED.format("datasets.get"))
    return dataset


def store_version(kaggle: LoopbackKaggle, dataset: Dataset, files: list[Body]) -> Body:
    dataset.version += 1
    dataset.content.mkdir(parents=True)
    for file in files:
        (kaggle.root / "blobs" / file["token"]).rename(dataset.content / Path(kaggle.blobs.pop(file["token"])).name)
    dataset.ready = time.time() + kaggle.processing_seconds
    url = f"https://www.kaggle.com/datasets/{dataset.ref}"
    return {"status": "ok", "url": url, "ref": f"/datasets/{dataset.ref}"}


@method
def create_dataset(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    ref = f"{body.get('ownerSlug')}/{body.get('slug')}"
    if body.get("ownerSlug") != user.name:
        raise Refused(403, DENIED.format("datasets.create"))
    if ref in kaggle.datasets:
        text = f'The requested slug "{body["slug"]}" is already in use by a dataset. Please choose another slug.'
        return {"status": "error", "error": text}
    number = kaggle.number()
    folder = kaggle.root / "datasets" / str(number)
    dataset = Dataset(ref, number, folder, bool(body.get("isPrivate")), body.get("title", ""))
    kaggle.datasets[ref] = dataset
    return store_version(kaggle, dataset, body.get("files", []))


@method
def create_dataset_version(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    dataset = dataset_of(kaggle, user, body.get("ownerSlug"), body.get("datasetSlug"))
    return store_version(kaggle, dataset, body["body"].get("files", []))


@method
def get_dataset_status(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    dataset = dataset_of(kaggle, user, body.get("ownerSlug"), body.get("datasetSlug"))
    return {"status": "BLOBS_RECEIVED" if dataset.processing else "READY"}


@method
def get_dataset(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    dataset = dataset_of(kaggle, user, body.get("ownerSlug"), body.get("datasetSlug"))
    told = {"id": dataset.id, "ref": dataset.ref, "title": dataset.title, "isPrivate": dataset.private}
    return {**told, "currentVersionNumber": dataset.version}


@method
def list_datasets(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    own = [dataset for dataset in kaggle.datasets.values() if dataset.ref.startswith(f"{user.name}/")]
    return {"datasets": [{"id": one.id, "ref": one.ref, "title": one.title, "isPrivate": one.private} for one in own]}


@method
def delete_dataset(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    dataset = dataset_of(kaggle, user, body.get("ownerSlug"), body.get("datasetSlug"))
    del kaggle.datasets[dataset.ref]
    return {}
