//! Images of every source, good and bad.

use super::support::assert_says;
use ddpm_ip::Error;
use ddpm_ip::data::{Batch, Dataset, Fit, Labels, Loader, OnBadImage, Options};
use ddpm_ip::npz::NpzWriter;
use flate2::{Compression, write::GzEncoder};
use image::{ImageBuffer, Luma, Rgb};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Of the embedded digits, as they are.
pub(crate) const OPTIONS: Options = Options::new(8, 1);

fn open(path: &Path, options: Options) -> Result<Dataset, Error> {
    Dataset::open(path.to_str().unwrap(), &options)
}

fn grey(path: &Path, side: u32, value: u8) {
    ImageBuffer::from_pixel(side, side, Luma([value])).save(path).unwrap();
}

/// A folder of images whose grey value is their number.
fn numbered(folder: &Path, count: u8) {
    (0..count).for_each(|i| grey(&folder.join(format!("{i:03}.png")), 8, i));
}

fn loader(data: Dataset, batch: usize, seed: u64, position: u64, workers: usize) -> Loader {
    Loader::start(Arc::new(data), batch, seed, position, workers, 2).unwrap()
}

fn next(loader: &mut Loader, batches: usize) -> Vec<Batch> {
    (0..batches).map(|_| loader.next().unwrap()).collect()
}

/// The number in each image of a batch from `numbered`.
fn numbers(batch: &Batch) -> Vec<u8> {
    batch.images.chunks_exact(64).map(|image| ((image[0] + 1.0) * 127.5).round() as u8).collect()
}

fn digits(options: Options) -> Dataset {
    Dataset::open("digits", &options).unwrap()
}

#[test]
fn the_digits_are_the_ones_that_everybody_knows() {
    let data = digits(OPTIONS);
    assert_eq!(data.len(), 1797);
    assert_eq!(data.labels().unwrap()[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
    // The first digit of the set, in its 17 levels.
    let levels: Vec<u8> = data.image(0).unwrap().iter().map(|&v| (f64::from(v) / 255.0 * 16.0).round() as u8).collect();
    assert_eq!(levels[..16], [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]);
}

#[test]
fn every_epoch_has_each_image_once_in_an_order_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    numbered(folder.path(), 10);
    // Batches of 4 run across the ends of epochs.
    let batches = next(&mut loader(open(folder.path(), OPTIONS).unwrap(), 4, 0, 0, 2), 5);
    let order: Vec<u8> = batches.iter().flat_map(numbers).collect();
    let mut epochs: Vec<Vec<u8>> = order.chunks_exact(10).map(<[u8]>::to_vec).collect();
    assert_ne!(epochs[0], epochs[1]);
    for epoch in &mut epochs {
        assert_ne!(*epoch, (0..10).collect::<Vec<_>>());
        epoch.sort_unstable();
        assert_eq!(*epoch, (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn batches_depend_on_seed_and_position_alone() {
    let options = Options { random_flip: true, random_crop: true, image_size: 7, ..OPTIONS };
    let straight = next(&mut loader(digits(options), 300, 5, 0, 1), 8);
    assert_eq!(straight, next(&mut loader(digits(options), 300, 5, 0, 4), 8));
    assert_eq!(straight[5..], next(&mut loader(digits(options), 300, 5, 1500, 2), 3));
    assert_ne!(straight[0], next(&mut loader(digits(options), 300, 6, 0, 1), 1)[0]);
    assert_eq!(straight[2].position, 600);
}

#[test]
fn flips_mirror_about_half_of_the_images_and_can_be_switched_off() {
    let plain = next(&mut loader(digits(OPTIONS), 200, 0, 0, 1), 1).remove(0);
    let options = Options { random_flip: true, ..OPTIONS };
    let flipped = next(&mut loader(digits(options), 200, 0, 0, 1), 1).remove(0);
    let mirrored = plain.images.chunks_exact(64).zip(flipped.images.chunks_exact(64)).filter(|(a, b)| {
        let mirror: Vec<f32> = a.chunks_exact(8).flat_map(|row| row.iter().rev().copied()).collect();
        assert!(a == b || mirror == **b);
        a != b
    });
    assert!((70..130).contains(&mirrored.count()));
    assert_eq!(plain.labels, flipped.labels);
}

#[test]
fn folders_are_read_in_order_at_every_depth_with_classes_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [("b/cat_1.png", 10), ("b/dog_2.jpg", 200), ("a/dog_1.PNG", 30), ("bird_9.jpeg", 90)] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        grey(&path, 8, value);
    }
    fs::write(folder.path().join("notes.txt"), b"no image").unwrap();
    let data = |labels| open(folder.path(), Options { labels, ..OPTIONS }).unwrap();
    let values: Vec<u8> = (0..4).map(|i| data(Labels::None).image(i).unwrap()[0]).collect();
    for (value, expected) in values.iter().zip([30, 10, 200, 90]) {
        assert!(value.abs_diff(expected) <= 2, "{values:?}");
    }
    assert!(data(Labels::None).labels().is_none());
    let prefix = data(Labels::Prefix);
    assert_eq!(
        (prefix.labels().unwrap(), prefix.class_names()),
        (&[2, 1, 2, 0][..], &["bird", "cat", "dog"].map(String::from)[..])
    );
    let by_folder = data(Labels::Folder);
    assert_eq!(
        (by_folder.labels().unwrap(), by_folder.class_names()),
        (&[1, 2, 2, 0][..], &["", "a", "b"].map(String::from)[..])
    );
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    let folder = tempfile::tempdir().unwrap();
    let (images, elsewhere) = (folder.path().join("images"), folder.path().join("elsewhere"));
    fs::create_dir(&images).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    grey(&images.join("a.png"), 8, 1);
    grey(&elsewhere.join("b.png"), 8, 2);
    std::os::unix::fs::symlink(&elsewhere, images.join("linked")).unwrap();
    std::os::unix::fs::symlink(&images, images.join("circle")).unwrap();
    let data = open(&images, Options { labels: Labels::Folder, ..OPTIONS }).unwrap();
    assert_eq!((data.len(), data.class_names()), (2, &["", "linked"].map(String::from)[..]));
}

#[test]
fn sets_are_brought_to_grey_or_colour_of_files_and_of_memory_alike() {
    use ddpm_ip::data::ImageSet;
    let folder = tempfile::tempdir().unwrap();
    numbered(folder.path(), 3);
    let all = |set: ImageSet| {
        let mut bytes = Vec::new();
        let shape = set.image_shape();
        set.batches(0, 2, &mut |images| {
            bytes.extend_from_slice(images);
            Ok(true)
        })
        .unwrap();
        (shape, bytes)
    };
    for name in [folder.path().to_str().unwrap(), "digits"] {
        let open = || ImageSet::open(name, None, None, false).unwrap();
        let ([h, w, _], grey) = all(open());
        let (shape, colour) = all(open().with_channels(3));
        assert_eq!(shape, [h, w, 3]);
        assert!(colour.chunks_exact(3).zip(&grey).all(|(pixel, &v)| pixel == [v; 3]), "{name}");
        assert_eq!(all(open().with_channels(1)).1, grey);
    }
}

#[test]
fn grey_and_colour_are_converted_as_pillow_does() {
    let folder = tempfile::tempdir().unwrap();
    ImageBuffer::from_pixel(8, 8, Rgb([200_u8, 100, 50])).save(folder.path().join("colour.png")).unwrap();
    grey(&folder.path().join("grey.png"), 8, 77);
    let colour = open(folder.path(), Options { channels: 3, ..OPTIONS }).unwrap();
    assert_eq!(colour.image(0).unwrap()[..3], [200, 100, 50]);
    assert_eq!(colour.image(1).unwrap()[..3], [77, 77, 77]);
    let grey = open(folder.path(), OPTIONS).unwrap();
    // Pillow's L = (19595 R + 38470 G + 7471 B + 32768) / 65536.
    assert_eq!((grey.image(0).unwrap()[0], grey.image(1).unwrap()[0]), (124, 77));
}

#[test]
fn a_folder_that_is_missing_or_empty_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert_says(open(&folder.path().join("none"), OPTIONS), &["none", "no such file or folder"]);
    assert_says(open(folder.path(), OPTIONS), &["no images in this folder"]);
    let text = folder.path().join("data.txt");
    fs::write(&text, b"text").unwrap();
    assert_says(open(&text, OPTIONS), &["data.txt", "not a known kind of data"]);
}

#[test]
fn bad_images_are_named_or_skipped() {
    let folder = tempfile::tempdir().unwrap();
    numbered(folder.path(), 12);
    let whole = fs::read(folder.path().join("000.png")).unwrap();
    fs::write(folder.path().join("003.png"), &whole[..whole.len() / 2]).unwrap();
    fs::write(folder.path().join("005.png"), b"no image at all").unwrap();
    fs::write(folder.path().join("006.png"), b"").unwrap();
    grey(&folder.path().join("008.png"), 4, 8);
    grey(&folder.path().join("jpeg.jpg"), 8, 20);
    let jpeg = fs::read(folder.path().join("jpeg.jpg")).unwrap();
    fs::write(folder.path().join("jpeg.jpg"), &jpeg[..jpeg.len() - 20]).unwrap();

    let mut failing = loader(open(folder.path(), OPTIONS).unwrap(), 13, 0, 0, 1);
    assert_says(failing.next(), &[".png", "--on-bad-image skip"]);
    for (i, expected) in
        [(3, "003.png"), (5, "005.png"), (6, "006.png"), (8, "4x4 pixels are smaller than 8x8"), (12, "cut off")]
    {
        assert_says(open(folder.path(), OPTIONS).unwrap().image(i), &[expected]);
    }
    let skipping = Options { on_bad_image: OnBadImage::Skip, ..OPTIONS };
    let mut skipping = loader(open(folder.path(), skipping).unwrap(), 13, 0, 0, 2);
    let seen = numbers(&next(&mut skipping, 1)[0]);
    assert!(seen.iter().all(|v| ![3, 5, 6, 8, 20].contains(v)), "{seen:?}");
    let names: Vec<String> = skipping.skipped().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 5);
    for name in ["003.png", "005.png", "006.png", "008.png", "jpeg.jpg"] {
        assert!(names.iter().any(|n| n.ends_with(name)), "{names:?}");
    }
}

#[test]
fn nothing_but_bad_images_is_an_end_even_when_skipping() {
    let folder = tempfile::tempdir().unwrap();
    (0..3).for_each(|i| grey(&folder.path().join(format!("{i}.png")), 4, i));
    let options = Options { on_bad_image: OnBadImage::Skip, ..OPTIONS };
    let mut loader = loader(open(folder.path(), options).unwrap(), 2, 0, 0, 1);
    assert_says(loader.next(), &["none of the 3 images", "4x4 pixels"]);
}

#[test]
fn sizes_are_fitted_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    grey(&folder.path().join("a.png"), 4, 200);
    let with = |fit, allow_upscale, image_size| {
        open(folder.path(), Options { fit, allow_upscale, image_size, ..OPTIONS }).unwrap().image(0)
    };
    assert_eq!(with(Fit::Crop, true, 8).unwrap(), [200; 64]);
    let padded = with(Fit::Pad, false, 8).unwrap();
    let inside = |i: usize| (2..6).contains(&(i % 8)) && (2..6).contains(&(i / 8));
    assert!(padded.iter().enumerate().all(|(i, &v)| v == if inside(i) { 200 } else { 0 }));
    assert_eq!(with(Fit::Crop, false, 2).unwrap(), [200; 4]);
    assert_says(with(Fit::Pad, false, 2), &["a.png", "4x4 pixels are larger than 2x2", "--fit crop"]);
    assert_says(with(Fit::Crop, false, 8), &["a.png", "4x4 pixels are smaller than 8x8", "--image-size"]);
}

fn write_npz(path: &Path, shape: &[usize], labels: Option<&[i64]>) {
    let values: Vec<u8> = (0..shape.iter().product()).map(|i: usize| i as u8).collect();
    ddpm_ip::file::write_atomic(path, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<u8>("arr_0", shape, |push| push(&values))?;
        if let Some(labels) = labels {
            npz.array::<i64>("arr_1", &[labels.len()], |push| push(labels))?;
        }
        npz.finish()
    })
    .unwrap();
}

#[test]
fn npz_files_are_read_as_the_references_scripts_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.npz");
    write_npz(&path, &[3, 8, 8, 1], Some(&[2, 0, 1]));
    let data = open(&path, OPTIONS).unwrap();
    assert_eq!((data.len(), data.labels()), (3, Some(&[2, 0, 1][..])));
    assert_eq!(data.image(1).unwrap()[..3], [64, 65, 66]);

    write_npz(&path, &[3, 8, 8], None);
    assert_eq!(open(&path, OPTIONS).unwrap().len(), 3, "grey images");
    write_npz(&path, &[24, 8], None);
    assert_says(open(&path, OPTIONS), &["data.npz", "[24, 8]", "[N, H, W, C]"]);
    write_npz(&path, &[0, 8, 8, 1], None);
    assert_says(open(&path, OPTIONS), &["data.npz", "no image"]);
    write_npz(&path, &[3, 8, 8, 1], Some(&[2, 0]));
    assert_says(open(&path, OPTIONS), &["data.npz", "arr_1", "3 images"]);
    write_npz(&path, &[3, 8, 8, 1], Some(&[2, 0, -1]));
    assert_says(open(&path, OPTIONS), &["data.npz", "negative"]);
    write_npz(&path, &[3, 8, 8, 1], Some(&[2, 0, 4_294_967_295]));
    assert_says(open(&path, OPTIONS), &["data.npz", "not below 65536"]);
    write_npz(&path, &[3, 8, 8, 2], None);
    assert_says(open(&path, OPTIONS), &["2 channels", "--in-channels"]);
    write_npz(&path, &[3, 4, 4, 1], None);
    assert_says(open(&path, OPTIONS), &["4x4 pixels are smaller"]);
    ddpm_ip::file::write_atomic(&path, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<f32>("arr_0", &[1, 8, 8, 1], |push| push(&[0.5; 64]))?;
        npz.finish()
    })
    .unwrap();
    assert_says(open(&path, OPTIONS), &["data.npz", "arr_0", "uint8"]);
    write_npz(&path, &[3, 8, 8, 1], None);
    let mut flipped = fs::read(&path).unwrap();
    flipped[200] ^= 1;
    fs::write(&path, flipped).unwrap();
    assert_says(open(&path, OPTIONS), &["data.npz", "arr_0", "damaged"]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 30]).unwrap();
    assert_says(open(&path, OPTIONS), &["data.npz", "npz"]);
}

fn write_idx(path: &Path, dims: &[u32], bytes: &[u8]) {
    let mut file = vec![0, 0, 8, dims.len() as u8];
    file.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    file.extend(bytes);
    if path.extension().is_some_and(|e| e == "gz") {
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(&file).unwrap();
        file = gz.finish().unwrap();
    }
    fs::write(path, file).unwrap();
}

#[test]
fn idx_files_are_read_gzipped_or_not_with_their_labels() {
    for ending in ["", ".gz"] {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join(format!("train-images-idx3-ubyte{ending}"));
        let labels = folder.path().join(format!("train-labels-idx1-ubyte{ending}"));
        let name = images.file_name().unwrap().to_str().unwrap();
        let values: Vec<u8> = (0..32).collect();
        write_idx(&images, &[2, 4, 4], &values);
        let options = Options { fit: Fit::Pad, ..OPTIONS };
        for path in [folder.path(), images.as_path()] {
            let data = open(path, options).unwrap();
            assert_eq!((data.len(), data.labels()), (2, None));
            assert_eq!(data.image(1).unwrap()[2 * 8 + 2], 16);
        }
        write_idx(&labels, &[2], &[7, 3]);
        assert_eq!(open(folder.path(), options).unwrap().labels(), Some(&[7, 3][..]));
        write_idx(&labels, &[3], &[7, 3, 1]);
        assert_says(open(folder.path(), options), &["train-labels", "3 labels for 2 images"]);
        fs::remove_file(&labels).unwrap();
        write_idx(&images, &[2, 4, 4], &values[..31]);
        assert_says(open(folder.path(), options), &[name, "not a complete IDX file"]);
        write_idx(&images, &[u32::MAX, u32::MAX, u32::MAX], &values);
        assert_says(open(folder.path(), options), &[name, "more bytes than the file can hold"]);
        write_idx(&images, &[32], &values);
        assert_says(open(folder.path(), options), &[name, "3-dimensional"]);
        let whole = fs::read(&images).unwrap();
        fs::write(&images, &whole[..3]).unwrap();
        assert_says(open(folder.path(), options), &[name, "not a complete IDX file"]);
    }
}
