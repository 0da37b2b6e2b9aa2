//! Small data sets, and what is prepared from them.

use ddpm_ip::npz::Npz;
use ddpm_ip::prepare::{Job, Kind, run};
use ddpm_ip::ranks::Ranks;
use ddpm_ip::{Error, Event, Outcome};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use image::{ImageEncoder, codecs::png::PngEncoder};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// A folder for a test: what is in it, and where outputs go.
pub(crate) struct Scene(TempDir);

impl Scene {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A job from one name to another, which takes what is there.
    pub(crate) fn job(&self, kind: Kind, source: &str, out: &str) -> Job {
        Job {
            kind,
            source: self.path(source),
            out: self.path(out),
            split: None,
            fit: None,
            image_size: None,
            channels: None,
            labels: None,
            prefix: None,
            exif_rotate: false,
            allow_count: true,
        }
    }
}

pub(crate) fn prepare(job: &Job) -> Result<Outcome, Error> {
    run(job, &Ranks::default(), &AtomicBool::new(false), &mut |_| ())
}

/// Stops when so many images are there.
pub(crate) fn prepare_until(job: &Job, images: usize) -> Outcome {
    let stop = AtomicBool::new(false);
    run(job, &Ranks::default(), &stop, &mut |event| {
        if let Event::Prepared { done, .. } = event {
            stop.store(done >= images, Ordering::Relaxed);
        }
    })
    .unwrap()
}

/// What the job prepares as an npz: shape, values, labels.
pub(crate) fn prepared(job: &Job) -> (Vec<usize>, Vec<u8>, Option<Vec<i64>>) {
    assert_eq!(prepare(job).unwrap(), Outcome::Finished);
    let mut npz = Npz::open(&job.out).unwrap();
    let images = npz.bytes("arr_0").unwrap();
    let labels = npz.has("arr_1").then(|| npz.integers("arr_1").unwrap().values);
    (images.shape, images.values, labels)
}

/// The job fails, says all of `parts`, and leaves nothing at the npz's name.
pub(crate) fn assert_refused(job: &Job, parts: &[&str]) {
    let message = prepare(job).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(!job.out.is_file());
}

/// The files of a folder that are not hidden, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

pub(crate) fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// A tar archive, with the names just as they are given.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A PNG of one grey.
pub(crate) fn grey(width: u32, height: u32, value: u8) -> Vec<u8> {
    png(width, height, &vec![value; (width * height) as usize], image::ExtendedColorType::L8)
}

/// A PNG of one colour.
pub(crate) fn colour(width: u32, height: u32, value: [u8; 3]) -> Vec<u8> {
    png(width, height, &value.repeat((width * height) as usize), image::ExtendedColorType::Rgb8)
}

fn png(width: u32, height: u32, data: &[u8], kind: image::ExtendedColorType) -> Vec<u8> {
    let mut out = Vec::new();
    PngEncoder::new(&mut out).write_image(data, width, height, kind).unwrap();
    out
}

/// FNV-1a.
pub(crate) fn hash(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |h, &v| (h ^ u64::from(v)).wrapping_mul(0x0100_0000_01b3))
}
