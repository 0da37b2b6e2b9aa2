//! Image files of a folder or an archive: CelebA, FFHQ, and any others.

use super::maker::{Body, Maker};
use super::source::Source;
use crate::Error;
use crate::config::ConfigError;
use crate::data::{DataError, Labels, Pixels, empty, folder, is_run};
use crate::npz::Npz;
use ddpm_formats::archive::Archive;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Images in the order of their names, or in a tar archive's own.
pub(super) struct Images {
    archive: Archive,
    /// Names of the PNGs.
    names: Vec<String>,
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
    expected: Option<usize>,
}

/// A class as part of a file name, in which `_` ends it.
fn in_file_name(class: &str) -> String {
    let name: String = class.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    if name.is_empty() { "-".into() } else { name }
}

impl Images {
    fn open(path: &Path) -> Result<Self, Error> {
        if is_run(path) {
            return Err(DataError::Run(path.into()).into());
        }
        if Npz::is_one(path) {
            return Err(Error::file(path, "holds arrays, not image files: `ddpm-ip info` says how they are used"));
        }
        let archive = Archive::open(path, folder::is_image)?;
        if archive.files().is_empty() {
            return Err(if path.is_dir() { empty(path) } else { Error::file(path, "has no images") });
        }
        Ok(Self { archive, names: Vec::new(), labels: None, classes: Vec::new(), expected: None })
    }

    /// A known data set, whose PNGs have its files' own names, without labels.
    pub(super) fn known(path: &Path, expected: usize) -> Result<Self, Error> {
        let images = Self::open(path)?;
        let name = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = images.archive.files().iter().map(name).collect();
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        if let Some([twice, ..]) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("has two images named {twice}: name the folder that has each once");
            return Err(Error::file(path, message));
        }
        Ok(Self { names, expected: Some(expected), ..images })
    }

    /// Any images. PNGs are numbered from 1, with the class before the number if there are labels.
    pub(super) fn any(path: &Path, wanted: Labels) -> Result<Self, Error> {
        let images = Self::open(path)?;
        let files = images.archive.files();
        let Some((labels, classes)) = folder::classes(Path::new(""), files, wanted) else {
            let names = (1..=files.len()).map(|i| format!("{i:07}")).collect();
            return Ok(Self { names, ..images });
        };
        if wanted == Labels::Prefix && !folder::has_prefixes(files) {
            folder::check_classes(&path.display().to_string(), Path::new(""), files, wanted, &classes)?;
        }
        let prefixes: Vec<String> = classes.iter().map(|class| in_file_name(class)).collect();
        if prefixes.iter().collect::<BTreeSet<_>>().len() < classes.len() {
            let message = "two classes have names that differ only in characters other than letters and digits: \
                           rename one";
            return Err(ConfigError(format!("{}: {message}", path.display())).into());
        }
        let name = |(i, &label): (usize, &u32)| format!("{}_{:07}", prefixes[label as usize], i + 1);
        let names = labels.iter().enumerate().map(name).collect();
        Ok(Self { names, labels: Some(labels), classes, ..images })
    }

    /// The first image.
    pub(super) fn first(&self, rotate: bool) -> Result<Pixels, Error> {
        let bytes = self.archive.read(0)?;
        folder::decode_bytes(&bytes, rotate).map_err(|reason| self.archive.unusable(0, reason).into())
    }
}

impl Source for Images {
    fn expected(&self) -> Option<usize> {
        self.expected
    }

    fn count(&self) -> Option<usize> {
        Some(self.names.len())
    }

    fn files(&self) -> Vec<&Path> {
        self.archive.files().iter().map(PathBuf::as_path).collect()
    }

    fn labelled(&self) -> bool {
        self.labels.is_some()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn feed(&self, maker: &mut Maker) -> Result<(), Error> {
        self.archive.each(&mut |i, load| {
            let label = self.labels.as_ref().map(|labels| labels[i]);
            let load = || Ok(Body::Encoded { bytes: load()?, place: self.archive.place(i) });
            maker.offer(self.names[i].clone(), label, load)
        })
    }
}
