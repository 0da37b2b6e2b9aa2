//! What a file is that is none of those read here, told from its first bytes.

use std::io::Read;
use std::path::Path;

/// What a file is, and how it becomes one that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// What it is, with its article.
    pub what: &'static str,
    /// What to do with it, as an order.
    pub advice: &'static str,
}

/// As many of a file's first bytes tell its kind.
pub const BYTES: usize = 512;

/// What files of a kind begin with, what they are, and what to do with them.
const MAGIC: &[(&[u8], &str, &str)] = &[
    (b"version https://git-lfs.github.com", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", MATLAB),
    (b"MATLAB 7.", "a MATLAB file of version 7.3", MATLAB_73),
    (b"\x89HDF\r\n", "an HDF5 file", HDF5),
    (b"PAR1", "a Parquet file, as in Hugging Face's datasets", PARQUET),
    (b"ARROW1", "an Arrow file, as in Hugging Face's datasets", ARROW),
    (b"\xff\x0a", "a JPEG XL image", IMAGE),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", IMAGE),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image", IMAGE),
    (b"8BPS", "a Photoshop image", IMAGE),
    (b"v/1\x01", "an OpenEXR image of floats", IMAGE),
    (b"#?RADIANCE", "a Radiance image of floats", IMAGE),
    (b"<?xml", "a vector graphic or other XML", IMAGE),
    (b"<svg", "a vector graphic", IMAGE),
    (b"%PDF", "a PDF document", IMAGE),
    (
        b"\0\x05\x16\x07",
        "metadata that macOS keeps beside a file (AppleDouble)",
        "use the file of the same name without `._`",
    ),
    (b"\x1a\x45\xdf\xa3", "a film", FILM),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (b"\xfd7zXZ", "compressed with xz", UNPACK),
    (b"BZh", "compressed with bzip2", UNPACK),
    (b"GGUF", "a GGUF file", "use the .safetensors or .pt from which it was made"),
    (b"SQLite format 3", "an SQLite database", "export the data that you need from it"),
];

const IMAGE: &str = "make it a PNG first, as with `magick FILE FILE.png`";
const FILM: &str = "extract its frames first, as with `ffmpeg -i FILE folder/%06d.png`";
const UNPACK: &str = "unpack it first";
const MATLAB: &str = "convert it with Python: `import numpy as np, scipy.io; m = scipy.io.loadmat('FILE'); \
                      np.savez('images.npz', arr_0=m['X'])`, where X is the name of its array of shape [N, H, W, C]";
const MATLAB_73: &str = "convert it with Python: `import numpy as np, h5py; np.savez('images.npz', \
                         arr_0=h5py.File('FILE')['X'][:].transpose())`, where X is the name of its array; transpose it \
                         to [N, H, W, C]";
const HDF5: &str = "convert it with Python: `import numpy as np, h5py; np.savez('images.npz', \
                    arr_0=h5py.File('FILE')['X'][:])`, where X is the name of its array of shape [N, H, W, C]";
const PARQUET: &str = "write its images into a folder with Python: `from datasets import load_dataset; \
                       [r['image'].save(f'images/{i:06}.png') for i, r in enumerate(load_dataset('parquet', \
                       data_files='FILE', split='train'))]`";
const ARROW: &str = "write its images into a folder with Python: `from datasets import Dataset; \
                     [r['image'].save(f'images/{i:06}.png') for i, r in enumerate(Dataset.from_file('FILE'))]`";

/// The kind of a file that begins so; none if it is not known.
pub fn tell(begin: &[u8]) -> Option<Kind> {
    let kind = |what, advice| Some(Kind { what, advice });
    if begin.is_empty() {
        return kind("empty", "copy or download it again");
    }
    if let Some((_, what, advice)) = MAGIC.iter().find(|(magic, ..)| begin.starts_with(magic)) {
        return kind(what, advice);
    }
    let text: Vec<u8> = begin.trim_ascii_start().iter().take(9).map(u8::to_ascii_lowercase).collect();
    if text.starts_with(b"<!doctype") || text.starts_with(b"<html") {
        return kind("a web page, perhaps an error page", "download the file again");
    }
    if begin.starts_with(b"RIFF") && begin.get(8..11) == Some(b"AVI") {
        return kind("a film", FILM);
    }
    match (begin.get(4..8), begin.get(8..12)) {
        (Some(b"ftyp"), Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1")) => kind("a HEIC image", IMAGE),
        (Some(b"ftyp"), Some(b"avif" | b"avis")) => kind("an AVIF image", IMAGE),
        (Some(b"ftyp"), _) => kind("a film", FILM),
        _ => None,
    }
}

/// As [`tell`], of a file that can be read.
pub fn of(path: &Path) -> Option<Kind> {
    let mut begin = Vec::new();
    crate::open(path).ok()?.take(BYTES as u64).read_to_end(&mut begin).ok()?;
    tell(&begin)
}

impl std::fmt::Display for Kind {
    /// As what follows a name: "is a film: take …".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "is {}: {}", self.what, self.advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_first_bytes() {
        for (begin, what) in [
            (&b""[..], "empty"),
            (b"\n<HTML><body>404", "web page"),
            (b"<!DOCTYPE html>", "web page"),
            (b"\0\0\0\x18ftypheic\0\0", "HEIC"),
            (b"\0\0\0\x18ftypavif\0\0", "AVIF"),
            (b"\0\0\0\x18ftypisom\0\0", "film"),
            (b"RIFF\0\0\0\0AVI LIST", "film"),
            (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "MATLAB"),
            (b"PAR1\x15\x04", "Parquet"),
        ] {
            assert!(tell(begin).unwrap().to_string().contains(what), "{what}");
        }
        for known in [&b"\x89PNG\r\n\x1a\n"[..], b"RIFF\0\0\0\0WEBPVP8 ", b"PK\x03\x04", b"\x93NUMPY", b"x"] {
            assert_eq!(tell(known), None);
        }
    }
}
