//! What mutated files have broken, and bounds that no file may pass. Tests are named by what was reported.

use crate::Error;
use crate::archive::Archive;
use crate::npz::Npz;
use crate::torch::TorchFile;
use std::io::Write;
use std::path::PathBuf;
use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

fn written(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The head of an npy file of bytes.
fn npy(fortran: &str, shape: &str) -> Vec<u8> {
    let head = format!("{{'descr': '|u1', 'fortran_order': {fortran}, 'shape': ({shape}), }}\n");
    [&b"\x93NUMPY\x01\0"[..], &(head.len() as u16).to_le_bytes(), head.as_bytes()].concat()
}

#[test]
fn an_empty_list_in_a_pickle() {
    let folder = TempDir::new().unwrap();
    for pickle in [&b"]."[..], b").", b"}Vmodel\n]s."] {
        let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file("a/data.pkl", SimpleFileOptions::default()).unwrap();
        zip.write_all(pickle).unwrap();
        let path = written(&folder, "a.pt", &zip.finish().unwrap().into_inner());
        let error = TorchFile::open(&path).unwrap().networks().unwrap_err().to_string();
        assert!(error.contains("and no network"), "{error}");
    }
}

#[test]
fn a_pickle_that_is_nothing_but_lists() {
    let folder = TempDir::new().unwrap();
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("a/data.pkl", SimpleFileOptions::default().compression_method(CompressionMethod::Deflated)).unwrap();
    zip.write_all(&[&b"\x80\x02"[..], &b"]".repeat(1_900_000), b"."].concat()).unwrap();
    let bytes = zip.finish().unwrap().into_inner();
    assert!(bytes.len() < 8000, "{}", bytes.len());
    let error = TorchFile::open(&written(&folder, "a.pt", &bytes)).err().unwrap().to_string();
    assert!(error.contains("instructions"), "{error}");
}

#[test]
fn arrays_with_a_length_of_zero_beside_huge_ones_in_rows_and_in_fortran_order() {
    let folder = TempDir::new().unwrap();
    for fortran in ["False", "True"] {
        let path = written(&folder, "a.npy", &npy(fortran, "0, 4294967296, 4294967296"));
        let mut npz = Npz::open(&path).unwrap();
        npz.byte_rows::<Error>(Npz::ONLY, 3, &mut |_| panic!("there is no row")).unwrap();
        assert!(npz.bytes(Npz::ONLY).unwrap().values.is_empty());
    }
}

#[test]
fn a_checkpoint_of_the_first_pickle_protocol() {
    let folder = TempDir::new().unwrap();
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("a/data.pkl", SimpleFileOptions::default()).unwrap();
    zip.write_all(b"(dVa\nP('storage', <class 'torch.FloatStorage'>, '0', 'cpu', 6)\ns.").unwrap();
    let path = written(&folder, "a.pt", &zip.finish().unwrap().into_inner());
    let error = TorchFile::open(&path).err().unwrap().to_string();
    assert!(error.contains("pickle protocol 0"), "{error}");
}

#[test]
fn an_array_that_claims_a_terabyte() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder, "a.npy", &npy("False", "1099511627776"));
    let mut npz = Npz::open(&path).unwrap();
    let errors = [npz.bytes(Npz::ONLY).err(), npz.byte_rows(Npz::ONLY, 3, &mut |_| Ok(true)).err()];
    for error in errors {
        assert!(error.unwrap().to_string().contains("more than the file holds"));
    }
}

#[test]
fn an_entry_of_an_archive_that_unpacks_to_more_than_it_says() {
    let folder = TempDir::new().unwrap();
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    zip.start_file("a.png", deflated).unwrap();
    zip.write_all(&vec![0; 100_000]).unwrap();
    let mut bytes = zip.finish().unwrap().into_inner();
    // The size in the directory.
    let at = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap() + 24;
    bytes[at..at + 4].copy_from_slice(&50_000u32.to_le_bytes());
    let archive = Archive::open(&written(&folder, "a.zip", &bytes), |_| true).unwrap();
    let error = archive.read(0).unwrap_err().to_string();
    assert!(error.contains("larger than its declared uncompressed size"), "{error}");
}

#[test]
fn a_name_in_an_archive_that_does_not_end() {
    let folder = TempDir::new().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 20);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, b"a".repeat(1 << 20).as_slice()).unwrap();
    let path = written(&folder, "a.tar", &tar.into_inner().unwrap());
    let error = Archive::open(&path, |_| true).err().unwrap().to_string();
    assert!(error.contains("it holds more than"), "{error}");
}
