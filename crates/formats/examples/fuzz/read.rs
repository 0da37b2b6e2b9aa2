//! The formats: how a file of each is read, made and mutated.

use crate::mutate::{Mutate, array, bytes, lmdb, pickle, tar, tensors};
use crate::seeds;
use ddpm_formats::archive::Archive;
use ddpm_formats::diffusers::{Process, Unet};
use ddpm_formats::lmdb::Lmdb;
use ddpm_formats::npz::Npz;
use ddpm_formats::safetensors::Safetensors;
use ddpm_formats::torch::{Pickle, TorchFile};
use ddpm_formats::{Error, idx, kind};
use std::ops::ControlFlow;
use std::path::Path;

/// A format.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Name of the files.
    pub(crate) file: &'static str,
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    pub(crate) mutate: Mutate,
    /// Reads all there is; whether it came to the end.
    pub(crate) read: fn(&Path) -> bool,
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "torch", file: "x.pt", seeds: seeds::torch, mutate: pickle, read: torch },
    Target { name: "npz", file: "x.npz", seeds: seeds::npz, mutate: array, read: npz },
    Target {
        name: "safetensors",
        file: "x.safetensors",
        seeds: seeds::safetensors,
        mutate: tensors,
        read: safetensors,
    },
    Target { name: "lmdb", file: "data.mdb", seeds: seeds::lmdb, mutate: lmdb, read: lmdb_entries },
    Target { name: "idx", file: "train-images-idx3-ubyte", seeds: seeds::idx, mutate: bytes, read: idx },
    Target { name: "diffusers", file: "config.json", seeds: seeds::diffusers, mutate: bytes, read: diffusers },
    Target { name: "archive", file: "x.tar", seeds: seeds::archive, mutate: tar, read: archive },
];

fn torch(path: &Path) -> bool {
    kind::of(path);
    let pickle = Pickle::open(path);
    let is_pickle = pickle.is_ok_and(|pickle| !pickle.value().describe().is_empty());
    TorchFile::is_one(path);
    let Ok(mut file) = TorchFile::open(path) else { return is_pickle };
    let mut whole = true;
    if let Ok(optimizer) = file.optimizer() {
        for tensor in optimizer.exp_avg.iter().chain(&optimizer.exp_avg_sq) {
            whole &= file.floats(tensor).is_ok();
        }
    }
    let Ok(networks) = file.networks() else { return false };
    for (_, tensor) in networks.iter().flat_map(|network| &network.tensors) {
        whole &= file.floats(tensor).is_ok();
    }
    whole
}

fn npz(path: &Path) -> bool {
    Npz::is_one(path);
    let Ok(mut npz) = Npz::open(path) else { return false };
    let mut whole = true;
    for name in npz.names() {
        let read = [
            npz.head(&name).is_ok(),
            npz.bytes(&name).is_ok(),
            npz.integers(&name).is_ok(),
            npz.floats(&name).is_ok(),
            npz.doubles(&name).is_ok(),
            npz.range(&name).is_ok(),
            npz.byte_rows::<Error>(&name, 3, &mut |_| Ok(true)).is_ok(),
        ];
        whole &= read[1..].contains(&true);
    }
    npz.comment();
    whole
}

fn safetensors(path: &Path) -> bool {
    let Ok(mut file) = Safetensors::open(path) else { return false };
    file.text("config");
    let names: Vec<String> = file.tensors().into_iter().map(|info| info.name).collect();
    let read = names.iter().filter(|name| file.floats(name).is_ok()).count();
    let whole = file.verify().is_ok() && read == names.len();
    let named = names.into_iter().map(|name| (name, ())).collect();
    !ddpm_formats::networks::split("", named).is_empty() && whole
}

fn lmdb_entries(path: &Path) -> bool {
    let Ok(db) = Lmdb::open(path) else { return false };
    db.entries().all(|entry| entry.and_then(|(_, value)| db.read(value, 1 << 30)).is_ok())
}

fn idx(path: &Path) -> bool {
    idx::load(path).is_ok()
}

fn diffusers(path: &Path) -> bool {
    let process = Process::read(path).is_ok_and(|process| !process.to_json().is_null());
    let Ok(unet) = Unet::read(path) else { return process };
    let names = unet.names().into_iter().flat_map(|entry| entry.own).map(|name| (name, ())).collect();
    unet.rename(path, names).is_ok() && !unet.to_json().is_null()
}

fn archive(path: &Path) -> bool {
    let Ok(archive) = Archive::open(path, |path| path.extension().is_some_and(|ending| ending == "png")) else {
        return false;
    };
    let read = archive.each::<Error>(&mut |_, load| load().map(|_| ControlFlow::Continue(())));
    read.is_ok()
}
