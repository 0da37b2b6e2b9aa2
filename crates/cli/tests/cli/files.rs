//! Files as people have them: what cameras, browsers, Macs, Windows, NumPy and PyTorch write. Tests are named by what was
//! reported, and `docs/files.md` says the same in a table.

use super::support::{Place, Ran, TINY};
use ddpm_ip::npz::Npz;
use ddpm_ip::torch::{TorchFile, write_state_dict};
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use std::fmt::Write as _;
use std::fs;
use std::io::Write;

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

#[test]
fn what_macs_windows_and_servers_leave_among_images() {
    let place = Place::new();
    images(&place, &["in/a.png", "in/b.PNG"]);
    for name in [
        "in/._a.png",
        "in/.DS_Store",
        "in/Thumbs.db",
        "in/desktop.ini",
        "in/__MACOSX/._b.png",
        "in/__MACOSX/b.png",
        "in/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
        "in/.ipynb_checkpoints/a-checkpoint.png",
        "in/.git/a.png",
    ] {
        write(&place, name, b"\0\x05\x16\x07");
    }
    assert!(told(&place, "in").contains("2 images, as 6x6 with 3 channel(s)"), "{}", told(&place, "in"));
    assert_eq!(prepared(&place, "in", &[]).0, [2, 6, 8, 3]);
    // A hidden folder that is named is meant.
    images(&place, &[".cache/a.png"]);
    assert!(told(&place, ".cache").contains("1 images"));
}

#[test]
fn kinds_of_images_that_everyone_has() {
    let place = Place::new();
    let names = ["a.gif", "b.bmp", "c.webp", "d.tiff", "e.TIF", "f.jpeg", "g.JPG", "h.jpeg.jpg"];
    images(&place, &names.map(|name| ["in/", name].concat()).each_ref().map(String::as_str));
    // What browsers save, and endings that lie.
    fs::rename(place.path("in/h.jpeg.jpg"), place.path("in/h.jfif")).unwrap();
    fs::rename(place.path("in/c.webp"), place.path("in/c.png")).unwrap();
    assert!(told(&place, "in").contains("8 images"));
    let (shape, values) = prepared(&place, "in", &[]);
    assert_eq!(shape, [8, 6, 8, 3]);
    // Bitmaps, WebP of this writer and TIFF lose nothing: numbers 1, 2 and 3.
    for image in 1..5 {
        assert!(values[image * 144..][..144] == *colour().as_raw(), "image {image}");
    }
}

#[test]
fn the_first_of_several_pictures_in_a_file() {
    let place = Place::new();
    fs::create_dir(place.path("in")).unwrap();
    let file = fs::File::create(place.path("in/moving.gif")).unwrap();
    let mut gif = image::codecs::gif::GifEncoder::new(file);
    let frame = |value| image::Frame::new(image::RgbaImage::from_pixel(8, 6, image::Rgba([value, value, value, 255])));
    gif.encode_frames([frame(10), frame(200)]).unwrap();
    drop(gif);
    let (shape, values) = prepared(&place, "in", &[]);
    assert_eq!(shape, [1, 6, 8, 3]);
    assert!(values.iter().all(|&value| value == 10), "{values:?}");
}

/// Files that Pillow wrote, in which this crate's writer has no part. The first picture of each is [`colour`], or flat.
const OF_PILLOW: [(&str, &[u8]); 9] = [
    ("palette.png", include_bytes!("images/palette.png")),
    ("moving.webp", include_bytes!("images/moving.webp")),
    ("moving.png", include_bytes!("images/moving.png")),
    ("pages.tif", include_bytes!("images/pages.tif")),
    ("interlaced.png", include_bytes!("images/interlaced.png")),
    ("bits.bmp", include_bytes!("images/bits.bmp")),
    ("cmyk.jpg", include_bytes!("images/cmyk.jpg")),
    ("cmyk.tif", include_bytes!("images/cmyk.tif")),
    ("progressive.jpg", include_bytes!("images/progressive.jpg")),
];

#[test]
fn palettes_with_transparency_films_of_pictures_pages_and_interlaced_images() {
    let place = Place::new();
    for (name, bytes) in &OF_PILLOW[..5] {
        write(&place, &format!("{name}.d/{name}"), bytes);
        let (shape, values) = prepared(&place, &format!("{name}.d"), &[]);
        assert_eq!((shape, values == *colour().as_raw()), (vec![1, 6, 8, 3], true), "{name}");
    }
}

#[test]
fn images_of_one_bit_of_four_inks_and_progressive() {
    let place = Place::new();
    for (name, bytes) in &OF_PILLOW[5..] {
        write(&place, &format!("{name}.d/{name}"), bytes);
        let (shape, values) = prepared(&place, &format!("{name}.d"), &[]);
        assert_eq!(shape, [1, 6, 8, 3], "{name}");
        if *name == "bits.bmp" {
            let rows: Vec<u8> = values.iter().step_by(3).map(|v| v / 255).collect();
            assert_eq!(rows[8..24], [0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]);
        } else {
            let off = values.chunks(3).flatten().zip([200, 40, 90].iter().cycle()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off <= Some(3), "{name}: {values:?}");
        }
    }
}

#[test]
fn images_of_sixteen_bits_and_with_transparency() {
    let place = Place::new();
    fs::create_dir(place.path("in")).unwrap();
    DynamicImage::from(colour()).to_rgb16().save(place.path("in/a.png")).unwrap();
    DynamicImage::from(colour()).to_rgba8().save(place.path("in/b.png")).unwrap();
    DynamicImage::from(colour()).to_rgba16().save(place.path("in/c.tiff")).unwrap();
    let (shape, values) = prepared(&place, "in", &[]);
    assert_eq!(shape, [3, 6, 8, 3]);
    assert!(values.chunks(144).all(|image| image == colour().as_raw()));
    DynamicImage::from(colour()).to_rgb32f().save(place.path("in/d.tiff")).unwrap();
    place
        .run(&["prepare", "images", "in", "--out", "floats.npz"])
        .complains(1, &["d.tiff", "holds floats", "save it with 8 bits"]);
}

#[test]
fn grey_and_colour_in_one_folder() {
    let place = Place::new();
    images(&place, &["in/a-grey.png", "in/b.png", "in/c-grey.png"]);
    let said = told(&place, "in");
    assert!(said.contains("with 3 channel(s)"), "{said}");
    assert!(said.contains("2 are grey and 1 in colour: --in-channels makes all alike"), "{said}");
    let complaint = ["b.png", "in colour, the first image is grey", "--channels"];
    place.run(&["prepare", "images", "in", "--out", "a.npz"]).complains(1, &complaint);
    let train = [
        "train",
        "--data-dir",
        "in",
        "--image-size",
        "6",
        "--num-channels",
        "32",
        "--channel-mult",
        "1",
        "--batch-size",
        "2",
        "--dry-run",
    ];
    let dry = |channels| place.run(&[&train[..], &["--in-channels", channels]].concat()).exits(0).err();
    let said = dry("1");
    assert!(said.contains("2 images are grey and 1 in colour: all are made grey"), "{said}");
    assert!(dry("3").contains("all are trained on in colour"));
}

#[test]
fn class_folders_that_nobody_mentioned() {
    let place = Place::new();
    images(&place, &["in/cat/1.png", "in/cat/2.png", "in/dog/1.png"]);
    let said = told(&place, "in");
    assert!(said.contains("they lie in 2 folders: --labels folder makes these classes (cat, dog)"), "{said}");
    let said = place.run(&["info", "in", "--labels", "folder"]).exits(0).out();
    assert!(said.contains("2 classes") && !said.contains("they lie in"), "{said}");
    // Dates of a camera are one image each: no classes.
    images(&place, &["dates/1/1.png", "dates/2/1.png"]);
    assert!(!told(&place, "dates").contains("--labels"));
}

/// A JPEG that says it is to be turned clockwise.
fn turned() -> Vec<u8> {
    let mut jpeg = std::io::Cursor::new(Vec::new());
    DynamicImage::from(colour()).write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
    let mut bytes = jpeg.into_inner();
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let segment = [&[0xff, 0xe1][..], &(exif.len() as u16 + 2).to_be_bytes(), exif].concat();
    bytes.splice(2..2, segment);
    bytes
}

#[test]
fn photos_that_a_camera_held_upright() {
    let place = Place::new();
    write(&place, "in/a.jpg", &turned());
    let said = told(&place, "in");
    assert!(said.contains("1 carry an EXIF orientation, which is ignored") && said.contains("--exif-rotate"), "{said}");
    let (shape, plain) = prepared(&place, "in", &[]);
    let (upright, rotated) = prepared(&place, "in", &["--exif-rotate"]);
    assert_eq!((shape, upright), (vec![1, 6, 8, 3], vec![1, 8, 6, 3]));
    // Clockwise: what was the lower left corner is the upper left.
    assert_eq!(rotated[..3], plain[5 * 8 * 3..][..3]);
    let said = place.run(&["info", "in", "--exif-rotate"]).exits(0).out();
    assert!(!said.contains("EXIF"), "{said}");
    write(&place, "real/a.jpg", &turned());
    images(&place, &["real/b.png"]);
    // One of them is upright, and then they are of two sizes.
    let statistics = ["statistics", "real", "s.npz", "--features", "grey", "--quiet", "--exif-rotate"];
    place.run(&statistics).complains(2, &["8x6 pixels, the first image of the folder has 6x8"]);
}

#[test]
fn images_that_are_none() {
    let place = Place::new();
    for (name, bytes, part) in [
        ("empty.png", &b""[..], "is empty: copy or download it again"),
        ("page.jpg", b"<!DOCTYPE html><html>404", "is a web page"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image: make it a PNG first"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be decoded"),
    ] {
        write(&place, &format!("{name}.d/{name}"), bytes);
        info(&place, &format!("{name}.d")).complains(1, &[name, part]);
    }
    fs::create_dir(place.path("nothing")).unwrap();
    info(&place, "nothing").complains(2, &["nothing: no images in this folder or below it"]);
    write(&place, "phone/IMG_1.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0");
    info(&place, "phone").complains(2, &["no images", "IMG_1.HEIC is a HEIC image", "magick"]);
    for (name, bytes) in [
        ("a.avif", &b"\0\0\0\x18ftypavif"[..]),
        ("a.jxl", b"\xff\x0a"),
        ("a.jp2", b"\0\0\0\x0cjP  "),
        ("a.svg", b"<svg/>"),
        ("a.psd", b"8BPS"),
        ("a.dng", b"II*\0"),
    ] {
        write(&place, &format!("{name}.d/{name}"), bytes);
        info(&place, &format!("{name}.d")).complains(2, &["no images", name, "make it a PNG first"]);
    }
    write(&place, "parquet/train-00000-of-00001.parquet", b"PAR1\x15\x04");
    info(&place, "parquet").complains(2, &["train-00000-of-00001.parquet is a Parquet file", "load_dataset"]);
    for (folder, file, kind) in [
        ("cifar-10-batches-py", "data_batch_1", "cifar10"),
        ("cifar-10-batches-bin", "data_batch_1.bin", "cifar10"),
        ("Imagenet32_train", "train_data_batch_1", "imagenet32"),
        ("bedroom_train_lmdb", "data.mdb", "lsun"),
    ] {
        write(&place, &format!("{folder}/{file}"), b"\x80\x02}");
        info(&place, folder).complains(2, &[&format!("ddpm-ip prepare {kind} {folder} --out {kind}.npz")]);
    }
    images(&place, &["some/a.png"]);
    write(&place, "some/b.mp4", b"\0\0\0\x18ftypisom\0\0\0\0");
    assert!(told(&place, "some").contains("1 more of kinds that are not read are passed over, such as b.mp4"));
}

#[test]
fn images_that_claim_to_be_huge() {
    let place = Place::new();
    // The length of a side, and the checksum of the chunk that says it.
    for (name, side, checksum) in [("a.png", 100_000u32, 0x5037_ac09u32), ("b.png", 0x7fff_ffff, 0xecac_aca7)] {
        let mut png = OF_PILLOW[4].1.to_vec();
        for at in [16, 20] {
            png[at..at + 4].copy_from_slice(&side.to_be_bytes());
        }
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        write(&place, &format!("{name}.d/{name}"), &png);
        info(&place, &format!("{name}.d")).complains(1, &[name, "has too many pixels"]);
    }
    let whole = place.path("whole.png");
    RgbImage::from_fn(99, 99, |x, y| Rgb([(x * y) as u8, x as u8, y as u8])).save(&whole).unwrap();
    let png = fs::read(whole).unwrap();
    for cut in [40, png.len() / 2, png.len() - 20] {
        write(&place, "cut/a.png", &png[..cut]);
        info(&place, "cut").complains(1, &["cut/a.png: cannot be decoded"]);
    }
}

#[test]
fn images_that_cannot_be_read_are_neither_grey_nor_in_colour() {
    let place = Place::new();
    images(&place, &["in/a.png"]);
    write(&place, "in/b.png", b"none");
    let said = told(&place, "in");
    assert!(said.contains("with 3 channel(s)") && !said.contains("grey"), "{said}");
}

#[test]
fn images_of_kinds_that_other_programs_write() {
    let place = Place::new();
    for name in ["a.ppm", "a.tga", "a.ico"] {
        write(&place, &format!("{name}.d/{name}"), b"P6 1 1 255 abc");
        info(&place, &format!("{name}.d")).complains(2, &["no images", name, "make it a PNG first"]);
        place
            .run(&["prepare", "images", &format!("{name}.d"), "--out", "x.npz"])
            .complains(2, &["no images", name, "make it a PNG first"]);
    }
}

#[test]
fn files_where_a_folder_of_images_is_meant() {
    let place = Place::new();
    images(&place, &["one.png"]);
    for (name, bytes, parts) in [
        ("a b.zip", &b"PK\x03\x04"[..], &["is an archive", "ddpm-ip prepare images 'a b.zip' --out"][..]),
        ("a.tar.gz", b"\x1f\x8b\x08\0", &["is an archive"]),
        ("a.tar", b"", &["is empty"]),
        ("a.mat", b"MATLAB 5.0 MAT-file, Platform: PCWIN64", &["a MATLAB file", "scipy.io.loadmat", "np.savez"]),
        ("b.mat", b"MATLAB 7.3 MAT-file", &["version 7.3", "h5py"]),
        ("a.h5", b"\x89HDF\r\n\x1a\n", &["an HDF5 file", "h5py"]),
        ("a.parquet", b"PAR1", &["Hugging Face", "load_dataset"]),
        ("a.arrow", b"ARROW1", &["an Arrow file", "Dataset.from_file"]),
        ("a.mp4", b"\0\0\0\x20ftypisom", &["a film", "ffmpeg"]),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", &["a 7z archive: unpack it first"]),
        ("a.txt", b"a", &["not a kind of data that is known"]),
    ] {
        write(&place, name, bytes);
        info(&place, name).complains(2, &[&[name], parts].concat());
    }
    info(&place, "one.png").complains(2, &["one.png: is one image: name the folder"]);
}

#[test]
fn names_that_shells_do_not_like() {
    let place = Place::new();
    images(&place, &["in/with space.png", "in/ünïcode-名前.png", "in/-dash.png", "in/'quote\".png", "in/%d.png"]);
    if cfg!(unix) {
        images(&place, &["in/new\nline.png"]);
    }
    let count = if cfg!(unix) { 6 } else { 5 };
    assert_eq!(prepared(&place, "in", &[]).0[0], count);
}

#[cfg(unix)]
#[test]
fn links_that_lead_in_circles_or_nowhere() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    images(&place, &["in/a.png", "elsewhere/b.png"]);
    symlink("..", place.path("in/loop")).unwrap();
    symlink(".", place.path("in/self")).unwrap();
    // Above `in` lies `elsewhere`, found once through the loop.
    assert!(told(&place, "in").contains("2 images"));
    symlink("not-there.png", place.path("elsewhere/c.png")).unwrap();
    info(&place, "elsewhere").exits(0);
    place.run(&["prepare", "images", "elsewhere", "--out", "e.npz"]).complains(1, &["c.png"]);
}

#[cfg(unix)]
#[test]
fn pipes_and_sockets() {
    let place = Place::new();
    images(&place, &["in/a.png", "sockets/a.png"]);
    let made = std::process::Command::new("mkfifo").arg(place.path("in/b.png")).arg(place.path("pipe")).status();
    assert!(made.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(place.path("sockets/b.png")).unwrap();
    for folder in ["in", "sockets"] {
        // Nobody writes: to read would be to wait for ever.
        assert!(told(&place, folder).contains("2 images"));
        place
            .run(&["prepare", "images", folder, "--out", &format!("{folder}.npz")])
            .complains(1, &["b.png", "is not a regular file"]);
    }
    info(&place, "pipe").complains(2, &["pipe: is not a regular file"]);
    place.run(&["evaluate", "pipe", "digits", "--metrics", "fid"]).complains(2, &["pipe: is not a regular file"]);
    place.run(&["prepare", "images", "pipe", "--out", "x.npz"]).complains(1, &["pipe: is neither a folder nor"]);
    place.run(&["sample", "--checkpoint", "pipe"]).complains(1, &["pipe: is not a regular file"]);
    place.run(&["train", "--config", "/dev/zero"]).complains(2, &["/dev/zero: is larger than 1048576 bytes"]);
}

#[cfg(target_os = "linux")]
#[test]
fn names_of_bytes_that_are_no_text_or_command_a_terminal() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    images(&place, &["in/a.png", "in/b.png"]);
    let name = std::ffi::OsStr::from_bytes(b"in/caf\xe9.png");
    fs::rename(place.path("in/b.png"), place.path("").join(name)).unwrap();
    assert_eq!(prepared(&place, "in", &[]).0[0], 2);
    write(&place, "red/\x1b[31mred.png", b"none");
    let said = info(&place, "red").exits(1).err();
    assert!(said.contains("\\u{1b}[31mred.png") && !said.contains('\x1b'), "{said}");
}

/// The bytes of an npy file: its type and shape as NumPy writes them, and its values.
fn npy(descr: &str, fortran: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let head = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}");
    let padded = (head.len() + 11).next_multiple_of(64) - 10;
    let mut bytes = [&b"\x93NUMPY\x01\0"[..], &(padded as u16).to_le_bytes()].concat();
    bytes.extend(format!("{head:width$}\n", width = padded - 1).bytes());
    bytes.extend(values);
    bytes
}

/// An npz of npy files by their names.
fn npz(place: &Place, name: &str, arrays: &[(&str, Vec<u8>)]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(place.path(name)).unwrap());
    for (name, npy) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(npy).unwrap();
    }
    zip.finish().unwrap();
}

/// Two images of 2x3 pixels in colour.
fn pixels() -> Vec<u8> {
    (0..36).map(|v| v * 7).collect()
}

/// Values of several bytes each.
fn widened<const N: usize>(values: &[u8], to: impl Fn(u8) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| to(v)).collect()
}

const COLOUR: &str = "(2, 2, 3, 3)";

/// What a network would get of a file of two images, as the pixels of a contact sheet.
fn seen(place: &Place, name: &str) -> Vec<u8> {
    let sheet = format!("{name}.sheet.png");
    place.run(&["info", name, "--contact-sheet", &sheet]).exits(0);
    image::open(place.path(&sheet)).unwrap().to_rgb8().into_raw()
}

#[test]
fn whole_numbers_of_any_type_and_order() {
    let place = Place::new();
    let plain = pixels();
    npz(&place, "plain.npz", &[("arr_0", npy("'|u1'", "False", COLOUR, &plain))]);
    let expected = seen(&place, "plain.npz");
    // [2, 2, 3, 3] with the first dimension fastest.
    let at = |i: usize| ((i % 2 * 2 + i / 2 % 2) * 3 + i / 4 % 3) * 3 + i / 12;
    let fortran: Vec<u8> = (0..36).map(|i| plain[at(i)]).collect();
    for (name, npy) in [
        ("fortran.npz", npy("'|u1'", "True", COLOUR, &fortran)),
        ("int64.npz", npy("'<i8'", "False", COLOUR, &widened(&plain, |v| i64::from(v).to_le_bytes()))),
        ("big.npz", npy("'>i4'", "False", COLOUR, &widened(&plain, |v| i32::from(v).to_be_bytes()))),
        ("both.npz", npy("'>u2'", "True", COLOUR, &widened(&fortran, |v| u16::from(v).to_be_bytes()))),
    ] {
        npz(&place, name, &[("arr_0", npy.clone())]);
        assert_eq!(seen(&place, name), expected, "{name}");
        let alone = name.replace("npz", "npy");
        fs::write(place.path(&alone), npy).unwrap();
        assert_eq!(seen(&place, &alone), expected, "{alone}");
        // As evaluation reads it, some images at a time.
        place.run(&["statistics", name, &format!("{name}.s.npz"), "--features", "grey", "--quiet"]).exits(0);
    }
    fs::copy(place.path("plain.npz"), place.path("PLAIN.NPZ")).unwrap();
    fs::copy(place.path("plain.npz"), place.path("no-ending")).unwrap();
    assert_eq!((seen(&place, "PLAIN.NPZ"), seen(&place, "no-ending")), (expected.clone(), expected));
    npz(&place, "grey.npz", &[("arr_0", npy("'|u1'", "False", "(1, 6, 6)", &plain))]);
    assert!(told(&place, "grey.npz").contains("1 images of 6x6 pixels with 1 channel(s)"));
}

#[test]
fn arrays_by_other_names() {
    let place = Place::new();
    let images = npy("'|u1'", "False", COLOUR, &pixels());
    let labels = npy("'<i8'", "False", "(2,)", &[0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    npz(&place, "named.npz", &[("images", images.clone()), ("labels", labels.clone())]);
    let said = told(&place, "named.npz");
    assert!(said.contains("images are its array `images`, labels `labels`"), "{said}");
    assert!(said.contains("2 classes:\n  0: 1\n  5: 1"), "{said}");
    let train =
        ["train", "--data-dir", "named.npz", "--image-size", "2", "--num-channels", "32", "--channel-mult", "1"];
    let dry = place.run(&[&train[..], &["--batch-size", "2", "--dry-run"]].concat()).exits(0).err();
    assert!(dry.contains("images are its array `images`"), "{dry}");
    let evaluate = ["evaluate", "named.npz", "named.npz", "--features", "grey", "--metrics", "fid"];
    assert!(place.run(&evaluate).exits(0).err().contains("named.npz: images are its array `images`"));
    npz(&place, "other.npz", &[("x", images.clone()), ("ids", labels.clone()), ("y", labels.clone())]);
    assert!(told(&place, "other.npz").contains("labels `y`"));
    npz(&place, "keras.npz", &[("x_train", images.clone()), ("x_test", images.clone()), ("y_train", labels)]);
    let several = ["several arrays that could be images", "`x_train` [2, 2, 3, 3]", "x = z['x_train']; np.savez("];
    info(&place, "keras.npz").complains(1, &several);
    let mu = npy("'<f8'", "False", "(2,)", &[0; 16]);
    npz(&place, "none.npz", &[("mu", mu.clone()), ("n", mu)]);
    info(&place, "none.npz").complains(1, &["has no array `arr_0` of images; it holds: mu, n"]);
}

#[test]
fn arrays_that_a_line_of_numpy_mends() {
    let place = Place::new();
    let floats = |scale: f32, shift: f32| widened(&pixels(), |v| (f32::from(v) * scale + shift).to_le_bytes());
    for (name, npy, parts) in [
        (
            "first.npz",
            npy("'|u1'", "False", "(2, 3, 6, 5)", &[1; 180]),
            &["channels first", "x.transpose(0, 2, 3, 1)", "z = np.load('first.npz')"][..],
        ),
        ("matlab.npz", npy("'|u1'", "False", "(6, 6, 3, 5)", &[1; 540]), &["images last", "x.transpose(3, 0, 1, 2)"]),
        ("one.npz", npy("'|u1'", "False", "(6, 5, 3)", &[1; 90]), &["one image", "x[None]"]),
        ("rows.npz", npy("'|u1'", "False", "(2, 9)", &[1; 18]), &["an image in each row", "x.reshape(-1, 3, 3, 1)"]),
        (
            "cifar.npz",
            npy("'|u1'", "False", "(1, 3072)", &[1; 3072]),
            &["x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)"],
        ),
        (
            "unit.npz",
            npy("'<f4'", "False", COLOUR, &floats(1.0 / 255.0, 0.0)),
            &["holds floats (<f4)", "(x * 255).round()"],
        ),
        ("signed.npz", npy("'<f4'", "False", COLOUR, &floats(1.0 / 127.5, -1.0)), &["((x + 1) * 127.5).round()"]),
        ("bytes.npz", npy("'<f4'", "False", COLOUR, &floats(1.0, 0.0)), &["x.round().astype(np.uint8)"]),
        ("nan.npz", npy("'<f4'", "False", COLOUR, &[255; 144]), &["floats that are not finite: find out why"]),
        ("half.npz", npy("'<f2'", "False", COLOUR, &[0; 72]), &["holds floats (<f2)"]),
        ("bool.npz", npy("'|b1'", "False", COLOUR, &[1; 36]), &["truth values", "x.astype(np.uint8) * 255"]),
        ("object.npz", npy("'|O'", "False", "(2,)", b"\x80\x04]."), &["Python objects", "np.stack(x)"]),
        (
            "objects.npz",
            npy("'|O'", "False", COLOUR, b"\x80\x04]."),
            &["Python objects", "allow_pickle=True", "np.stack(x)"],
        ),
        ("deep.npz", npy("'<u2'", "False", COLOUR, &[255; 72]), &["holds 65535", "(x / x.max() * 255)"]),
        (
            "negative.npz",
            npy("'|i1'", "False", COLOUR, &[255; 36]),
            &["holds -1, expected whole numbers from 0 to 255"],
        ),
        ("record.npz", npy("[('a', '<f4')]", "False", "(2,)", &[0; 8]), &["structured array", "one of its fields"]),
        ("scalar.npz", npy("'|u1'", "False", "()", &[0]), &["`arr_0` has shape [], expected [N, H, W, C]"]),
        ("none.npz", npy("'|u1'", "False", "(0, 2, 2, 3)", &[]), &["there is no image in it"]),
        (
            "huge.npz",
            npy("'|u1'", "False", "(1099511627776, 64, 64, 3)", &[0; 9]),
            &["claims the shape", "damaged or cut off"],
        ),
    ] {
        npz(&place, name, &[("arr_0", npy)]);
        info(&place, name).complains(1, &[&[name], parts].concat());
    }
    fs::write(place.path("first.npy"), npy("'|u1'", "False", "(2, 3, 6, 5)", &[1; 180])).unwrap();
    info(&place, "first.npy")
        .complains(1, &["`import numpy as np; x = np.load('first.npy'); np.savez('converted.npz'"]);
}

#[test]
fn archives_packed_in_ways_that_are_not_read() {
    let place = Place::new();
    images(&place, &["a.png"]);
    let png = fs::read(place.path("a.png")).unwrap();
    let npy = npy("'|u1'", "False", COLOUR, &pixels());
    for (name, entry, bytes, part) in [
        ("a.npz", "arr_0.npy", &npy, "save it anew with `np.savez`"),
        ("a.zip", "a.png", &png, "unpack it and name the folder"),
    ] {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file(entry, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
        let zip = zip.finish().unwrap().into_inner();
        let command = |name: &str| match name {
            "a.npz" => info(&place, name),
            _ => place.run(&["prepare", "images", name, "--out", "x.npz"]),
        };
        // In the head of the entry and in the directory: a password, and bzip2.
        let head = |at: usize| [zip.windows(4).position(|w| w == b"PK\x01\x02").unwrap() + at + 2, at];
        for (at, value, what) in [(6, 1, "Password"), (8, 12, "Bzip2")] {
            let mut other = zip.clone();
            for at in head(at) {
                other[at] = value;
            }
            write(&place, name, &other);
            command(name).complains(1, &[name, what, part]);
        }
    }
    write(&place, "cut.npz", &fs::read(place.path("a.npz")).unwrap()[..50]);
    info(&place, "cut.npz").complains(1, &["not a readable npz archive", "it is cut off"]);
    place.run(&["prepare", "images", "a.npz", "--out", "x.npz"]).complains(1, &["holds arrays, no image files"]);
}

#[test]
fn labels_that_a_line_of_numpy_mends() {
    let place = Place::new();
    let images = npy("'|u1'", "False", COLOUR, &pixels());
    for (name, labels, parts) in [
        ("one-hot.npz", npy("'<f8'", "False", "(2, 10)", &[0; 160]), &["one-hot", "arr_1=y.argmax(1)"][..]),
        ("floats.npz", npy("'<f4'", "False", "(2,)", &[0; 8]), &["holds floats", "arr_1=y.astype(int)"]),
        (
            "names.npz",
            npy("'<U3'", "False", "(2,)", &[0; 24]),
            &["holds names", "np.unique(y, return_inverse=True)[1]"],
        ),
        (
            "objects.npz",
            npy("'|O'", "False", "(2,)", b"\x80\x04]."),
            &["np.load('objects.npz', allow_pickle=True)", "np.unique(y, return_inverse=True)[1]"],
        ),
        (
            "few.npz",
            npy("'<i8'", "False", "(1,)", &[0; 8]),
            &["shape [1], expected one label for each of the 2 images"],
        ),
    ] {
        npz(&place, name, &[("arr_0", images.clone()), ("arr_1", labels)]);
        info(&place, name).complains(1, &[&[name, "`arr_1`"], parts].concat());
    }
    npz(&place, "column.npz", &[("arr_0", images.clone()), ("arr_1", npy("'|u1'", "False", "(2, 1)", &[3, 4]))]);
    assert!(told(&place, "column.npz").contains("2 classes:\n  3: 1\n  4: 1"));
    npz(&place, "bool.npz", &[("arr_0", images), ("arr_1", npy("'|b1'", "False", "(2,)", &[1, 0]))]);
    assert!(told(&place, "bool.npz").contains("2 classes"));
}

#[test]
fn files_of_the_mnist_family_as_torchvision_and_kaggle_lay_them() {
    let place = Place::new();
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2][..], &[7; 8]].concat();
    write(&place, "MNIST/raw/train-images-idx3-ubyte", &images);
    write(&place, "MNIST/raw/train-labels-idx1-ubyte", &[0, 0, 8, 1, 0, 0, 0, 2, 4, 5]);
    write(&place, "kaggle/train-images.idx3-ubyte", &images);
    for folder in ["MNIST", "MNIST/raw"] {
        assert!(told(&place, folder).contains("2 images of 2x2 pixels with 1 channel(s)"));
        assert!(told(&place, folder).contains("2 classes:\n  4: 1"));
    }
    assert!(told(&place, "kaggle").contains("2 images"));
}

/// A tiny run's parameters, by name and shape, with the values.
fn parameters(place: &Place) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    place.train(&["--steps", "1"]).exits(0);
    place.run(&["convert", "run", "plain.pt"]).exits(0);
    let mut file = TorchFile::open(&place.path("plain.pt")).unwrap();
    let named = file.parameters().unwrap();
    named.into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec(), file.floats(&tensor).unwrap())).collect()
}

/// Writes parameters as `torch.save` does, each by every name that `names` gives it, with its values multiplied.
fn save(
    place: &Place,
    file: &str,
    parameters: &[(String, Vec<usize>, Vec<f32>)],
    names: impl Fn(&str) -> Vec<(String, f32)>,
) {
    let mut entries = Vec::new();
    let mut values = Vec::new();
    for (name, shape, held) in parameters {
        for (name, factor) in names(name) {
            entries.push((name, shape.clone()));
            values.push(held.iter().map(|v| v * factor).collect::<Vec<_>>());
        }
    }
    write_state_dict(fs::File::create(place.path(file)).unwrap(), &entries, |i| &values[i]).unwrap();
}

const SAMPLE: [&str; 12] = [
    "--num-samples",
    "2",
    "--timestep-respacing",
    "2",
    "--diffusion-steps",
    "10",
    "--noise-schedule",
    "cosine",
    "--image-size",
    "8",
    "--overwrite",
    "--out",
];

fn drawn(place: &Place, checkpoint: &str, more: &[&str]) -> (Vec<u8>, String) {
    let out = "drawn.npz";
    let sample = [&["sample", "--checkpoint", checkpoint], &SAMPLE[..], &[out], more].concat();
    let said = place.run(&sample).exits(0).err();
    (Npz::open(&place.path(out)).unwrap().bytes("arr_0").unwrap().values, said)
}

#[test]
fn networks_that_other_programs_wrapped() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    for (file, prefix) in [
        ("compiled.pt", "_orig_mod."),
        ("ddp-compiled.pt", "module._orig_mod."),
        ("compiled-ddp.pt", "_orig_mod.module."),
        ("lightning.ckpt", "model."),
        ("fsdp.bin", "_fsdp_wrapped_module."),
        ("fabric.ckpt", "_forward_module."),
    ] {
        save(&place, file, &parameters, |name| vec![(format!("{prefix}{name}"), 1.0)]);
        let (images, said) = drawn(&place, file, &[]);
        assert!(images == expected, "{file}");
        assert!(!said.contains("several networks"), "{said}");
        assert!(told(&place, file).contains("From names and shapes:"), "{}", told(&place, file));
    }
    let tensors = serialized(&parameters, "model._orig_mod.");
    write(&place, "other.safetensors", &tensors);
    assert!(drawn(&place, "other.safetensors", &[]).0 == expected);
}

/// A safetensors file as other programs write it.
fn serialized(parameters: &[(String, Vec<usize>, Vec<f32>)], prefix: &str) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in parameters {
        let begin = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(format!("{prefix}{name}"), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn several_networks_in_one_file() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    save(&place, "both.pt", &parameters, |name| {
        vec![(format!("online_model.{name}"), 30.0), (format!("ema_model.{name}"), 1.0)]
    });
    let (images, said) = drawn(&place, "both.pt", &[]);
    assert!(images == expected);
    let taken = "both.pt holds several networks: `ema_model` is taken; --network takes another (`online_model`)";
    assert!(said.contains(taken), "{said}");
    assert!(told(&place, "both.pt").contains(taken));
    let (online, said) = drawn(&place, "both.pt", &["--network", "online_model"]);
    assert!(online != expected);
    assert!(said.contains("`online_model` is taken"), "{said}");
    let nope = [&["sample", "--checkpoint", "both.pt", "--network", "x"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&nope).complains(1, &["has no network `x`: it holds ema_model, online_model"]);
    let own = [&["sample", "--checkpoint", "run", "--network", "x"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&own).complains(2, &["one network alone: leave --network out"]);
    let begun = ["--init-from", "both.pt", "--network", "online_model", "--steps", "1"];
    let train = [&["train"], &TINY[..TINY.len() - 2], &begun, &["--out", "begun"]].concat();
    let said = place.run(&train).exits(0).err();
    assert!(said.contains("`online_model` is taken"), "{said}");
    // What it began from is no matter for its own checkpoints.
    drawn(&place, "begun", &[]);
}

/// A file as `torch.save` writes it of dictionaries in each other. `wrap` makes its pickle with a function that gives the
/// dictionary of the network, with a prefix before each name and its values multiplied.
fn save_nested(
    place: &Place,
    file: &str,
    parameters: &[(String, Vec<usize>, Vec<f32>)],
    wrap: impl Fn(&mut dyn FnMut(&str, f32) -> String) -> String,
) {
    let mut storages: Vec<Vec<u8>> = Vec::new();
    let mut network = |prefix: &str, factor: f32| {
        let mut text = "ccollections\nOrderedDict\n(tR".to_string();
        for (name, shape, values) in parameters {
            let ints =
                |list: &[usize]| list.iter().flat_map(|n| ["I".into(), n.to_string(), "\n".into()]).collect::<String>();
            let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
            let (key, count) = (storages.len(), values.len());
            write!(
                text,
                "V{prefix}{name}\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{count}\n\
                 tQI0\n({}t({}tI00\nccollections\nOrderedDict\n(tRtRs",
                ints(shape),
                ints(&strides)
            )
            .unwrap();
            storages.push(values.iter().flat_map(|v| (v * factor).to_le_bytes()).collect());
        }
        text
    };
    let pickle = wrap(&mut network) + ".";
    let mut zip = zip::ZipWriter::new(fs::File::create(place.path(file)).unwrap());
    let entries = storages.iter().enumerate().map(|(key, bytes)| (format!("archive/data/{key}"), bytes.as_slice()));
    for (name, bytes) in std::iter::once(("archive/data.pkl".into(), pickle.as_bytes())).chain(entries) {
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// An optimizer's state.
const OPTIMIZER: &str = "}Vstate\n}sVparam_groups\n](}Vlr\nF0.1\nses";

#[test]
fn dictionaries_in_each_other() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    save_nested(&place, "lightning.ckpt", &parameters, |network| {
        let network = network("model.", 1.0);
        format!(
            "}}Vepoch\nI3\nsVpytorch-lightning_version\nV2.0\nsVstate_dict\n{network}sVloops\n}}sVoptimizer_states\n\
             ]({OPTIMIZER}esVhyper_parameters\n}}Vlr\nF0.1\nss"
        )
    });
    save_nested(&place, "trainer.pt", &parameters, |network| {
        let (plain, online, average) =
            (network("model.", 30.0), network("online_model.model.", 30.0), network("ema_model.model.", 1.0));
        // One dictionary of both: the second's entries go on where the first's end.
        let average = average.trim_start_matches("ccollections\nOrderedDict\n(tR");
        format!("}}Vstep\nI5\nsVmodel\n{plain}sVopt\n{OPTIMIZER}sVema\n{online}{average}sVscaler\nNs")
    });
    save_nested(&place, "list.pth", &parameters, |network| {
        format!("]({}{OPTIMIZER}I1\nI1000\n{}e", network("module.", 30.0), network("module.", 1.0))
    });
    for file in ["lightning.ckpt", "trainer.pt", "list.pth"] {
        let (images, said) = drawn(&place, file, &[]);
        assert!(images == expected, "{file}: {said}");
    }
    let (online, said) = drawn(&place, "trainer.pt", &["--network", "ema.online_model.model"]);
    assert!(online != expected && said.contains("`ema.online_model.model` is taken"), "{said}");
}

#[test]
fn the_name_of_a_network_is_for_the_checkpoint_and_not_for_its_guide() {
    let place = Place::new();
    let parameters = parameters(&place);
    save(&place, "both.pt", &parameters, |name| {
        vec![(format!("online_model.{name}"), 30.0), (format!("ema_model.{name}"), 1.0)]
    });
    save(&place, "average.pt", &parameters, |name| vec![(name.into(), 1.0)]);
    let online = ["--network", "online_model"];
    let guided = |guide: &str, scale: &str| {
        drawn(&place, "both.pt", &[&online[..], &["--guide-with", guide, "--guidance-scale", scale]].concat())
    };
    // The guide has one network, or is the average of two.
    let (images, said) = guided("average.pt", "3");
    assert!(said.contains("`online_model` is taken"), "{said}");
    assert!(guided("both.pt", "3").0 == images);
    assert!(drawn(&place, "both.pt", &online).0 != images);
}

#[test]
fn checkpoints_of_networks_that_are_not_known() {
    let place = Place::new();
    let sample = |file: &str| place.run(&[&["sample", "--checkpoint", file], &SAMPLE[..], &["x.npz"]].concat());
    let other = [("conv1.weight".to_string(), vec![2, 3], vec![0.0; 6]), ("fc.bias".into(), vec![2], vec![0.0; 2])];
    write(&place, "other.safetensors", &serialized(&other, ""));
    sample("other.safetensors").complains(1, &["its 2 tensors, such as `conv1.weight`", "no network that is known"]);
    write(&place, "none.safetensors", &serialized(&[], ""));
    sample("none.safetensors").complains(1, &["its 0 tensors are those of no network"]);
    save(&place, "whole.pt", &other, |name| vec![(name.into(), 1.0)]);
    let whole = fs::read(place.path("whole.pt")).unwrap();
    write(&place, "cut.pt", &whole[..whole.len() / 2]);
    sample("cut.pt").complains(1, &["cut.pt: is a zip archive as PyTorch writes them, damaged or cut off"]);
    write(&place, "short.pt", b"hello");
    sample("short.pt").complains(1, &["short.pt: not a whole safetensors file (it is too short)"]);
}

#[test]
fn numbers_of_twice_the_width() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in &parameters {
        let begin = data.len();
        data.extend(values.iter().flat_map(|v| f64::from(*v).to_le_bytes()));
        let info = serde_json::json!({"dtype": "F64", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    write(&place, "double.safetensors", &file);
    assert!(drawn(&place, "double.safetensors", &[]).0 == expected);
}

#[test]
fn a_tensor_that_is_missing_or_too_many() {
    let place = Place::new();
    let parameters = parameters(&place);
    save(&place, "other.pt", &parameters, |name| vec![(name.replace("time_embed.2.bias", "time_emb.2.bias"), 1.0)]);
    let sample = [&["sample", "--checkpoint", "other.pt"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&sample).complains(1, &["no tensor `time_embed.2.bias`", "the nearest that it has is `time_emb.2.bias`"]);
    save(&place, "more.pt", &parameters, |name| {
        let extra = (name == "out.2.bias").then(|| ("out.2.bais".to_string(), 1.0));
        std::iter::once((name.to_string(), 1.0)).chain(extra).collect()
    });
    let sample = [&["sample", "--checkpoint", "more.pt"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&sample).complains(1, &["no place for its tensor `out.2.bais`", "the network's nearest is `out.2.bias`"]);
}

#[test]
fn checkpoints_of_other_programs_in_folders() {
    let place = Place::new();
    for (file, parts) in [
        ("dcp/__0_0.distcp", &["torch.distributed.checkpoint", "dcp_to_torch dcp model.pt"][..]),
        ("zero/zero_to_fp32.py", &["DeepSpeed's", "python zero/zero_to_fp32.py zero model.pt"]),
        ("shards/model.safetensors.index.json", &["in shards", "glob.glob('shards/*.safetensors')", "save_file"]),
        ("accelerate/pytorch_model.bin", &["name one of its files: accelerate/pytorch_model.bin"]),
        ("nothing/README.md", &["name a run directory"]),
    ] {
        write(&place, file, b"");
        let folder = file.split('/').next().unwrap();
        let sample = [&["sample", "--checkpoint", folder], &SAMPLE[..], &["x.npz"]].concat();
        place.run(&sample).complains(1, &[&[folder, "holds no checkpoint"], parts].concat());
    }
    for (file, bytes, part) in [
        ("a.safetensors", &b""[..], "a.safetensors: is empty"),
        ("b.safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("c.pt", b"<!doctype html>", "a web page"),
        ("d.safetensors.index.json", b"{}", "the index of shards"),
        ("e.gguf", b"GGUF\x03\0\0\0", "a GGUF file: take the .safetensors or .pt"),
    ] {
        write(&place, file, bytes);
        place.run(&[&["sample", "--checkpoint", file], &SAMPLE[..], &["x.npz"]].concat()).complains(1, &[part]);
    }
}

#[test]
fn a_flipped_bit_in_a_checkpoint() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let verified = place.run(&["info", "run", "--verify"]).exits(0).out();
    for file in ["model", "ema_0.995", "state"] {
        assert!(verified.contains(&format!("ok       run/checkpoints/step_000001/{file}.safetensors")), "{verified}");
    }
    let file = place.path("run/checkpoints/step_000001/ema_0.995.safetensors");
    let whole = fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    // The last tensor by name.
    let damage = ["ema_0.995.safetensors: `time_embed.2.weight` is damaged", "not those that were written"];
    place.run(&[&["sample", "--checkpoint", "run"], &SAMPLE[..], &["x.npz"]].concat()).complains(1, &damage);
    let ran = place.run(&["info", "run", "--verify"]).exits(1);
    assert!(ran.out().contains("DAMAGED") && ran.out().contains(damage[0]), "{}", ran.out());
    assert!(ran.err().contains("1 of 3 files are damaged"), "{}", ran.err());
    let json = place.run(&["info", "run/checkpoints/step_000001", "--verify", "--json"]).exits(1).out();
    assert!(json.contains("\"problem\"") && json.contains("time_embed.2.weight"), "{json}");
    // In the header, where the settings are.
    let mut bytes = whole.clone();
    let at = whole.windows(7).position(|w| w == b"dropout").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    place.run(&["info", "run"]).complains(1, &["ema_0.995.safetensors", "its header is damaged", "step_ folder"]);
    // Written before there were checksums, or by another program.
    write(&place, "other.safetensors", &serialized(&parameters(&Place::new()), ""));
    drawn(&place, "other.safetensors", &[]);
    let verified = place.run(&["info", "other.safetensors", "--verify"]).exits(0).out();
    assert!(verified.contains("unknown  other.safetensors: it carries no checksums"), "{verified}");
}
