//! Folders of images.

use super::*;

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
    ("palette.png", include_bytes!("../images/palette.png")),
    ("moving.webp", include_bytes!("../images/moving.webp")),
    ("moving.png", include_bytes!("../images/moving.png")),
    ("pages.tif", include_bytes!("../images/pages.tif")),
    ("interlaced.png", include_bytes!("../images/interlaced.png")),
    ("bits.bmp", include_bytes!("../images/bits.bmp")),
    ("cmyk.jpg", include_bytes!("../images/cmyk.jpg")),
    ("cmyk.tif", include_bytes!("../images/cmyk.tif")),
    ("progressive.jpg", include_bytes!("../images/progressive.jpg")),
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
    let complaint = ["b.png", "in colour, but the first image is grey", "--channels"];
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
    place.run(&statistics).complains(2, &["8x6 pixels, but the first image of the folder has 6x8"]);
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
    assert!(told(&place, "some").contains("1 more files of unsupported kinds are skipped, such as b.mp4"));
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
        ("a.txt", b"a", &["not a known kind of data"]),
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
