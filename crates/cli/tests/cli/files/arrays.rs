//! npz, npy and IDX files.

use super::*;
use std::io::Write;

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
        ("bool.npz", npy("'|b1'", "False", COLOUR, &[1; 36]), &["booleans", "x.astype(np.uint8) * 255"]),
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
        ("a.npz", "arr_0.npy", &npy, "save it again with `np.savez`"),
        ("a.zip", "a.png", &png, "unpack the archive and name the folder"),
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
    place.run(&["prepare", "images", "a.npz", "--out", "x.npz"]).complains(1, &["holds arrays, not image files"]);
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
