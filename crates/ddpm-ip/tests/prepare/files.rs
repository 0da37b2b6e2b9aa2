//! Image files in folders and archives.

use super::support::{Scene, assert_refused, colour, grey, gzip, names, prepare, prepared, tar, zip};
use ddpm_ip::data::Labels;
use ddpm_ip::prepare::{Fit, Job, Kind};
use std::fs;

/// Five images of two classes, by folder and by prefix, sorted by name.
fn five() -> Vec<(String, Vec<u8>)> {
    let image = |i: u8| colour(6, 6, [i, i + 100, i + 200]);
    let name = |i: u8| format!("{}/{}_{i}.png", ["cat", "dog"][usize::from(i > 1)], ["x", "y"][usize::from(i % 2)]);
    let mut all: Vec<_> = (0..5).map(|i| (name(i), image(i))).collect();
    all.sort();
    all
}

fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect()
}

#[test]
fn folders_and_archives_of_the_same_images_give_the_same() {
    let scene = Scene::new();
    let files = five();
    for (name, bytes) in &files {
        scene.write(&format!("in/{name}"), bytes);
    }
    scene.write("in/._hidden.png", b"junk");
    scene.write("in/readme.txt", b"no image");
    let mut backwards = borrowed(&files);
    backwards.reverse();
    scene.write("in.zip", &zip(&backwards));
    scene.write("in.tar", &tar(&borrowed(&files)));
    scene.write("in.tar.gz", &gzip(&tar(&borrowed(&files))));
    let job = |source: &str, labels| Job {
        labels: Some(labels),
        ..scene.job(Kind::Images, source, &format!("{source}-{labels:?}.npz"))
    };
    for source in ["in", "in.zip", "in.tar", "in.tar.gz"] {
        let (shape, values, labels) = prepared(&job(source, Labels::Folder));
        assert_eq!((shape, labels), (vec![5, 6, 6, 3], Some(vec![0, 0, 1, 1, 1])), "{source}");
        // cat/x_0, cat/y_1, dog/x_2, dog/x_4, dog/y_3
        let first: Vec<u8> = values.chunks_exact(108).map(|image| image[0]).collect();
        assert_eq!(first, [0, 1, 2, 4, 3], "{source}");
        assert_eq!(prepared(&job(source, Labels::Prefix)).2, Some(vec![0, 1, 0, 0, 1]), "{source}");
        assert_eq!(prepared(&job(source, Labels::None)).2, None, "{source}");
    }
}

#[test]
fn pngs_are_numbered_after_their_class() {
    let scene = Scene::new();
    scene.write("in.zip", &zip(&borrowed(&five())));
    let job = Job { labels: Some(Labels::Folder), ..scene.job(Kind::Images, "in.zip", "classes") };
    prepare(&job).unwrap();
    let expected = ["cat_0000001.png", "cat_0000002.png", "dog_0000003.png", "dog_0000004.png", "dog_0000005.png"];
    assert_eq!(names(&job.out), expected);
    let job = scene.job(Kind::Images, "in.zip", "numbers");
    prepare(&job).unwrap();
    assert_eq!(names(&job.out)[0], "0000001.png");
}

#[test]
fn names_in_archives_lead_nowhere() {
    let scene = Scene::new();
    let image = grey(4, 4, 9);
    let hostile: Vec<(&str, &[u8])> =
        vec![("../../evil_1.png", &image), ("/evil_2.png", &image), ("a/../../evil_3.png", &image)];
    scene.write("in.tar", &tar(&hostile));
    scene.write("in.zip", &zip(&hostile));
    for source in ["in.tar", "in.zip"] {
        for labels in [Labels::None, Labels::Prefix, Labels::Folder] {
            let out = format!("below/{source}-{labels:?}");
            let job = Job { labels: Some(labels), ..scene.job(Kind::Images, source, &out) };
            prepare(&job).unwrap();
            assert_eq!(names(&job.out).len(), 3);
        }
    }
    assert_eq!(names(&scene.path("")), ["below", "in.tar", "in.zip"]);
    assert_eq!(names(&scene.path("below")).len(), 6);
}

#[test]
fn long_names_in_tar_archives_are_read_up_to_a_limit() {
    let scene = Scene::new();
    let image = grey(4, 4, 9);
    let long = format!("{}/{}.png", "folder".repeat(20), "x".repeat(90));
    let gnu = |name: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(image.len() as u64);
        builder.append_data(&mut header, name, image.as_slice()).unwrap();
        builder.into_inner().unwrap()
    };
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("comment", b"-".as_slice()), ("path", long.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(image.len() as u64);
    header.set_cksum();
    pax.append(&header, image.as_slice()).unwrap();
    for (i, bytes) in [gnu(&long), pax.into_inner().unwrap()].into_iter().enumerate() {
        let source = format!("{i}.tar.gz");
        scene.write(&source, &gzip(&bytes));
        let out = format!("{i}.out");
        let job = Job { labels: Some(Labels::Folder), ..scene.job(Kind::Images, &source, &out) };
        prepare(&job).unwrap();
        assert_eq!(names(&job.out), [format!("{}_0000001.png", "folder".repeat(20))]);
    }
    scene.write("endless.tar.gz", &gzip(&gnu(&format!("{}.png", "x".repeat(70_000)))));
    assert_refused(&scene.job(Kind::Images, "endless.tar.gz", "out.npz"), &["endless.tar.gz", "more than 65536 bytes"]);
}

#[test]
fn celeba_is_cropped_or_squashed_as_the_user_says() {
    let scene = Scene::new();
    // Above black, below white.
    let tall = [vec![0; 178 * 109], vec![255; 178 * 109]].concat();
    image::GrayImage::from_raw(178, 218, tall).unwrap().save(scene.path("000001.png")).unwrap();
    let file = fs::read(scene.path("000001.png")).unwrap();
    scene.write("celeba.zip", &zip(&[("img_align_celeba/000001.png", &file)]));
    let job = |fit| Job { fit, ..scene.job(Kind::CelebA64, "celeba.zip", &format!("{fit:?}.npz")) };
    assert_refused(&job(None), &["--fit crop", "--fit squash"]);
    assert_refused(&job(Some(Fit::Pad)), &["--fit crop", "--fit squash"]);
    for fit in [Fit::Crop, Fit::Squash] {
        let (shape, values, labels) = prepared(&job(Some(fit)));
        assert_eq!((shape, labels), (vec![1, 64, 64, 3], None));
        assert_eq!((values[0], values[values.len() - 1]), (0, 255));
    }
    let small = Job { image_size: Some(16), out: scene.path("png"), ..job(Some(Fit::Squash)) };
    prepare(&small).unwrap();
    assert_eq!(image::image_dimensions(scene.path("png/000001.png")).unwrap(), (16, 16));
    let whole = Job { allow_count: false, out: scene.path("whole.npz"), ..job(Some(Fit::Crop)) };
    assert_refused(&whole, &["has 1 images", "202599", "--allow-count"]);
}

#[test]
fn ffhqs_images_have_their_size_and_names() {
    let scene = Scene::new();
    scene.write("ffhq/01000/01000.png", &grey(128, 128, 2));
    scene.write("ffhq/00000/00007.png", &grey(128, 128, 1));
    let job = scene.job(Kind::Ffhq128, "ffhq", "out");
    prepare(&job).unwrap();
    assert_eq!(names(&job.out), ["00007.png", "01000.png"]);
    scene.write("ffhq/02000/00007.png", &grey(128, 128, 1));
    assert_refused(&scene.job(Kind::Ffhq128, "ffhq", "twice.npz"), &["two images named 00007"]);
    scene.write("ffhq/02000/00007.png", &grey(128, 128, 1));
    fs::rename(scene.path("ffhq/02000/00007.png"), scene.path("ffhq/02000/02000.png")).unwrap();
    scene.write("ffhq/02000/02000.png", &grey(1024, 1024, 1));
    assert_refused(&scene.job(Kind::Ffhq128, "ffhq", "large.npz"), &["02000.png", "1024x1024", "128x128"]);
}

#[test]
fn damaged_members_are_named_and_those_before_them_kept() {
    let scene = Scene::new();
    let (good, cut) = (grey(40, 40, 5), &grey(40, 40, 6)[..60]);
    let files: Vec<(&str, &[u8])> = vec![("a.png", &good), ("b.png", cut), ("c.png", &good)];
    scene.write("in.zip", &zip(&files));
    scene.write("in.tar.gz", &gzip(&tar(&files)));
    for source in ["in.zip", "in.tar.gz"] {
        let job = scene.job(Kind::Images, source, &format!("{source}.out"));
        assert_refused(&job, &[source, "b.png", "cannot be decoded"]);
        assert_eq!(names(&job.out), ["0000001.png"]);
    }
    // A byte of the second file's contents is another.
    let mut bytes = zip(&files);
    let at = bytes.windows(cut.len()).position(|w| w == cut).map_or(bytes.len() / 2, |at| at + 30);
    bytes[at] ^= 1;
    scene.write("flipped.zip", &bytes);
    assert_refused(&scene.job(Kind::Images, "flipped.zip", "out.npz"), &["flipped.zip", ".png"]);
    scene.write("empty.zip", &zip(&[("readme", b"")]));
    assert_refused(&scene.job(Kind::Images, "empty.zip", "out.npz"), &["has no images"]);
}

#[test]
fn images_are_alike_or_made_alike() {
    let scene = Scene::new();
    scene.write("in/1.png", &grey(8, 6, 10));
    scene.write("in/2.png", &grey(8, 6, 20));
    let job = scene.job(Kind::Images, "in", "grey.npz");
    assert_eq!(prepared(&job).0, [2, 6, 8, 1]);
    scene.write("in/3.png", &colour(6, 6, [1, 2, 3]));
    let to = |name: &str| scene.job(Kind::Images, "in", name);
    assert_refused(&to("a.npz"), &["3.png", "in colour", "--channels"]);
    assert_refused(&Job { channels: Some(3), ..to("b.npz") }, &["3.png", "6x6", "8x6", "--image-size"]);
    let square = |name, fit| Job { channels: Some(3), image_size: Some(8), fit: Some(fit), ..to(name) };
    assert_refused(&square("c.npz", Fit::Crop), &["1.png", "8x6", "too few"]);
    assert_eq!(prepared(&square("d.npz", Fit::Squash)).0, [3, 8, 8, 3]);
    assert_eq!(prepared(&square("e.npz", Fit::Pad)).1[..3], [0, 0, 0]);
    let all_grey = Job { channels: Some(1), image_size: Some(4), ..to("f.npz") };
    assert_eq!(prepared(&all_grey).0, [3, 4, 4, 1]);
    assert_refused(&Job { image_size: None, ..square("g.npz", Fit::Pad) }, &["--fit needs --image-size"]);
    assert_refused(&Job { prefix: Some("x".into()), ..to("h.npz") }, &["--prefix has no meaning for images"]);
    assert_refused(&Job { image_size: Some(0), ..to("i.npz") }, &["--image-size 0"]);
}

/// Left out in silence they would be missing, and followed they would lead anywhere.
#[test]
fn links_and_devices_in_tar_archives_are_named() {
    let scene = Scene::new();
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo, tar::EntryType::Char] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, "b.png", "/etc/passwd").unwrap();
        scene.write("in.tar", &builder.into_inner().unwrap());
        assert_refused(&scene.job(Kind::Images, "in.tar", "out.npz"), &["b.png is a link", "name the folder"]);
    }
}
