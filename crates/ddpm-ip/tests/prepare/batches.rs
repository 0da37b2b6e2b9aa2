//! CIFAR-10 and downsampled ImageNet.

use super::support::{Scene, assert_refused, gunzip, gzip, names, prepare, prepared, tar, zip};
use ddpm_ip::npz::NpzWriter;
use ddpm_ip::prepare::{Job, Kind, Split};
use std::io::Cursor;

/// Planes of `count` images, as the fixtures have them.
fn planes(count: usize, seed: usize) -> Vec<u8> {
    (0..count * 3072).map(|i| ((i * (seed * 2 + 3) + i / 1024 * 31) % 251) as u8).collect()
}

fn pixels(planes: &[u8]) -> Vec<u8> {
    let image =
        |planes: &[u8]| (0..1024).flat_map(|i| [planes[i], planes[1024 + i], planes[2048 + i]]).collect::<Vec<_>>();
    planes.chunks_exact(3072).flat_map(image).collect()
}

fn binary(planes: &[u8], labels: &[u8]) -> Vec<u8> {
    planes.chunks_exact(3072).zip(labels).flat_map(|(image, &label)| [&[label], image].concat()).collect()
}

/// Three images in the first batch, two in the second, which comes first in the archive; and one to test.
fn cifar() -> Vec<u8> {
    let all = planes(5, 1);
    gzip(&tar(&[
        ("cifar-10-batches-bin/data_batch_2.bin", &binary(&all[3 * 3072..], &[4, 1])),
        ("cifar-10-batches-bin/batches.meta.txt", b"airplane"),
        ("cifar-10-batches-bin/test_batch.bin", &binary(&planes(1, 9), &[0])),
        ("cifar-10-batches-bin/data_batch_1.bin", &binary(&all[..3 * 3072], &[6, 9, 9])),
    ]))
}

fn cifar_job(scene: &Scene, out: &str) -> Job {
    if !scene.path("cifar.tar.gz").exists() {
        scene.write("cifar.tar.gz", &cifar());
    }
    scene.job(Kind::Cifar10, "cifar.tar.gz", out)
}

#[test]
fn cifar_batches_come_in_order_whatever_the_archives() {
    let scene = Scene::new();
    let (shape, values, labels) = prepared(&cifar_job(&scene, "out.npz"));
    assert_eq!(shape, [5, 32, 32, 3]);
    assert_eq!(values, pixels(&planes(5, 1)));
    assert_eq!(labels.unwrap(), [6, 9, 9, 4, 1]);
}

#[test]
fn cifars_python_version_holds_the_same() {
    let scene = Scene::new();
    let pickle = gunzip(include_bytes!("fixtures/cifar_python2.pickle.gz"));
    scene.write("cifar/cifar-10-batches-py/data_batch_1", &pickle);
    let of_python = prepared(&scene.job(Kind::Cifar10, "cifar", "python.npz"));
    assert_eq!(of_python, prepared(&cifar_job(&scene, "binary.npz")));
}

#[test]
fn cifars_pngs_have_the_references_names() {
    let scene = Scene::new();
    let job = cifar_job(&scene, "png");
    prepare(&job).unwrap();
    let train = ["car_00005.png", "deer_00004.png", "frog_00001.png", "truck_00002.png", "truck_00003.png"];
    assert_eq!(names(&job.out), train);
    let image = image::open(job.out.join("frog_00001.png")).unwrap().into_rgb8();
    assert_eq!(image.into_raw(), pixels(&planes(1, 1)));
    let test = Job { split: Some(Split::Test), out: scene.path("test"), ..job };
    prepare(&test).unwrap();
    assert_eq!(names(&test.out), ["plane_50001.png"]);
}

#[test]
fn other_counts_than_the_data_sets_need_permission() {
    let scene = Scene::new();
    let job = |split| Job { split: Some(split), allow_count: false, ..cifar_job(&scene, "out.npz") };
    assert_refused(&job(Split::Train), &["data_batch_3 is not in it", "--allow-count"]);
    assert_refused(&job(Split::Test), &["has 1 images", "has 10000", "--allow-count"]);
    prepare(&Job { allow_count: true, ..job(Split::Test) }).unwrap();
}

#[test]
fn damaged_batches_are_named() {
    let scene = Scene::new();
    let refused = |bytes: &[u8], parts: &[&str]| {
        scene.write("damaged/data_batch_1.bin", bytes);
        assert_refused(&scene.job(Kind::Cifar10, "damaged", "out.npz"), parts);
    };
    let whole = binary(&planes(2, 1), &[3, 5]);
    refused(&whole[..whole.len() - 1], &["damaged", "data_batch_1.bin", "6145 bytes", "cut off"]);
    refused(&binary(&planes(2, 1), &[3, 10]), &["data_batch_1.bin", "label of image 1 is 10", "0 to 9"]);
    scene.write("cut.tar.gz", &cifar()[..500]);
    assert_refused(&scene.job(Kind::Cifar10, "cut.tar.gz", "out.npz"), &["cut.tar.gz", "not a complete tar archive"]);
    scene.write("none/readme.txt", b"");
    assert_refused(&scene.job(Kind::Cifar10, "none", "out.npz"), &["data_batch_1 is not in it"]);
    scene.write("data.tar.gz", b"<html>not found</html>");
    assert_refused(&scene.job(Kind::Cifar10, "data.tar.gz", "out.npz"), &["neither a folder nor a zip"]);
    scene.write("pickle/test_batch", b"\x80\x02}.");
    let job = Job { split: Some(Split::Test), ..scene.job(Kind::Cifar10, "pickle", "out.npz") };
    assert_refused(&job, &["test_batch: it has no `data`"]);
    scene.write("pickle/test_batch", b"cos\nsystem\n(S'true'\ntR.");
    assert_refused(&job, &["test_batch"]);
}

fn imagenet_npz(planes: &[u8], labels: &[i64]) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let mut npz = NpzWriter::new(&mut out);
    npz.array::<u8>("data", &[labels.len(), 3072], |push| push(planes)).unwrap();
    npz.array::<i64>("labels", &[labels.len()], |push| push(labels)).unwrap();
    npz.finish().unwrap();
    out.into_inner()
}

#[test]
fn imagenets_batches_are_read_as_pickles_and_as_npz() {
    let scene = Scene::new();
    let pickle = gunzip(include_bytes!("fixtures/imagenet.pickle.gz"));
    scene.write("pickles/train_data_batch_2", &pickle);
    scene.write("pickles.zip", &zip(&[("train_data_batch_2", &pickle)]));
    scene.write("npz/train_data_batch_2.npz", &imagenet_npz(&planes(3, 2), &[1, 1000, 500]));
    let expected = (vec![3, 32, 32, 3], pixels(&planes(3, 2)), Some(vec![0, 999, 499]));
    for source in ["pickles", "pickles.zip", "npz"] {
        assert_eq!(prepared(&scene.job(Kind::ImageNet32, source, &format!("{source}.out.npz"))), expected);
    }
    let folder = scene.job(Kind::ImageNet32, "npz", "png");
    prepare(&folder).unwrap();
    assert_eq!(names(&folder.out), ["0000_0000001.png", "0499_0000003.png", "0999_0000002.png"]);
}

#[test]
fn imagenets_mistakes_are_named() {
    let scene = Scene::new();
    let refused = |bytes: &[u8], parts: &[&str]| {
        scene.write("in/train_data_batch_1.npz", bytes);
        assert_refused(&scene.job(Kind::ImageNet32, "in", "out.npz"), parts);
    };
    refused(&imagenet_npz(&planes(2, 1), &[5, 0]), &["label of image 1 is 0", "1 to 1000"]);
    refused(&imagenet_npz(&planes(2, 1), &[5, i64::MIN]), &["label of image 1"]);
    refused(b"PK", &["train_data_batch_1.npz", "not a readable npz"]);
    let all = Job { allow_count: false, split: Some(Split::Test), ..scene.job(Kind::ImageNet32, "in", "out.npz") };
    assert_refused(&all, &["val_data is not in it"]);
}

#[test]
fn batches_that_come_later_are_not_mixed_with_those_taken() {
    let scene = Scene::new();
    let all = planes(4, 1);
    scene.write("cif/data_batch_2.bin", &binary(&all[..2 * 3072], &[1, 2]));
    scene.write("cif/data_batch_5.bin", &binary(&all, &[1, 2, 3, 4])[..5000]);
    let job = scene.job(Kind::Cifar10, "cif", "out.npz");
    assert_refused(&job, &["data_batch_5.bin", "cut off"]);
    // The mended batch is the same one; the first is another.
    scene.write("cif/data_batch_5.bin", &binary(&all[2 * 3072..], &[3, 4]));
    let other = Job { out: scene.path("mended.npz"), ..job.clone() };
    std::fs::copy(scene.path("out.npz.partial"), scene.path("mended.npz.partial")).unwrap();
    assert_eq!(prepared(&other).1, pixels(&all));
    scene.write("cif/data_batch_1.bin", &binary(&all[..3072], &[7]));
    // What the failed call left is of no use now.
    assert_eq!(prepared(&job).1, pixels(&[&all[..3072], &all].concat()));
}

#[test]
fn both_splits_of_imagenet_fit_into_one_folder() {
    let scene = Scene::new();
    scene.write("in/train_data_batch_1.npz", &imagenet_npz(&planes(3, 2), &[1, 2, 3]));
    scene.write("in/val_data.npz", &imagenet_npz(&planes(3, 5), &[1, 2, 3]));
    for split in [Split::Train, Split::Test] {
        prepare(&Job { split: Some(split), ..scene.job(Kind::ImageNet32, "in", "png") }).unwrap();
    }
    let expected = ["0000_0000001.png", "0000_1281168.png", "0001_0000002.png", "0001_1281169.png"];
    assert_eq!(names(&scene.path("png"))[..4], expected);
    assert_eq!(names(&scene.path("png")).len(), 6);
}

#[test]
fn a_set_without_images_is_none() {
    let scene = Scene::new();
    scene.write("cif/data_batch_1.bin", b"");
    assert_refused(&scene.job(Kind::Cifar10, "cif", "out.npz"), &["has no images"]);
}
