//! Files as people have them: what cameras, browsers, Macs, Windows, NumPy and PyTorch write. Tests are named by what was
//! reported, and `docs/files.md` says the same in a table.

mod arrays;
mod checkpoints;
mod pictures;

use super::support::{Place, Ran};
use ddpm_ip::npz::Npz;
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use std::fs;

/// An image of 8x6 pixels in which all four corners differ.
fn colour() -> RgbImage {
    RgbImage::from_fn(8, 6, |x, y| Rgb([(x * 30) as u8, (y * 40) as u8, 9]))
}

fn grey() -> GrayImage {
    GrayImage::from_fn(8, 6, |x, y| Luma([(x * 30 + y) as u8]))
}

/// Writes images by these names, grey where the name says so.
fn images(place: &Place, names: &[&str]) {
    for name in names {
        let path = place.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let image: DynamicImage = if name.contains("grey") { grey().into() } else { colour().into() };
        image.save(path).unwrap();
    }
}

fn write(place: &Place, name: &str, bytes: &[u8]) {
    let path = place.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn info(place: &Place, what: &str) -> Ran {
    place.run(&["info", what])
}

/// What `info` says of something that can be used.
fn told(place: &Place, what: &str) -> String {
    info(place, what).exits(0).out()
}

/// The images that `prepare` makes of a source, and their shape.
fn prepared(place: &Place, source: &str, more: &[&str]) -> (Vec<usize>, Vec<u8>) {
    let out = format!("out{}.npz", fs::read_dir(place.path("")).unwrap().count());
    place.run(&[&["prepare", "images", source, "--out", &out], more].concat()).exits(0);
    let array = Npz::open(&place.path(&out)).unwrap().bytes("arr_0").unwrap();
    (array.shape, array.values)
}
