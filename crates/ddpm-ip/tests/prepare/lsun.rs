//! LSUN's databases.

use super::support::{Scene, assert_refused, gunzip, hash, names, prepare, prepared};
use ddpm_ip::prepare::{Job, Kind};
use std::fs;

/// 63 images: 60 of 10x8 pixels, whose values lie in the leaves, and three of 40x36 on pages of their own. The sixth is
/// a JPEG, the others are WebP.
fn database(scene: &Scene, name: &str) -> Vec<u8> {
    let bytes = gunzip(include_bytes!("fixtures/lsun.mdb.gz"));
    scene.write(&format!("{name}/data.mdb"), &bytes);
    bytes
}

fn job(scene: &Scene, source: &str, out: &str) -> Job {
    Job { image_size: Some(8), ..scene.job(Kind::Lsun, source, out) }
}

#[test]
fn images_are_those_of_the_references_script() {
    let scene = Scene::new();
    database(&scene, "tower_train_lmdb");
    let (shape, values, labels) = prepared(&job(&scene, "tower_train_lmdb", "out.npz"));
    assert_eq!((shape, labels), (vec![63, 8, 8, 3], None));
    // Pillow's values.
    assert_eq!(hash(&values), 0xd865_ce7d_eb72_4a1b);
    assert_eq!(names(&scene.path("tower_train_lmdb")), ["data.mdb"], "the database is only read");
}

#[test]
fn pngs_are_named_after_the_category() {
    let scene = Scene::new();
    database(&scene, "tower_val_lmdb");
    let folder = job(&scene, "tower_val_lmdb", "out");
    prepare(&folder).unwrap();
    assert_eq!((names(&folder.out).len(), names(&folder.out)[62].as_str()), (63, "tower_0000062.png"));
    // Another category in the same folder.
    prepare(&Job { prefix: Some("church".into()), ..folder.clone() }).unwrap();
    assert_eq!((names(&folder.out).len(), names(&folder.out)[0].as_str()), (126, "church_0000000.png"));
    for prefix in ["../x", ".x"] {
        assert!(prepare(&Job { prefix: Some(prefix.into()), ..folder.clone() }).is_err());
    }
}

#[test]
fn known_categories_have_known_counts() {
    let scene = Scene::new();
    for (name, count) in [("tower_train_lmdb", "708264"), ("church_outdoor_val_lmdb", "300")] {
        database(&scene, name);
        let whole = Job { allow_count: false, ..job(&scene, name, "out.npz") };
        assert_refused(&whole, &[name, "has 63 images", count, "--allow-count"]);
    }
    database(&scene, "mine");
    prepare(&Job { allow_count: false, ..job(&scene, "mine", "out.npz") }).unwrap();
}

#[test]
fn a_damaged_value_is_reported_with_its_key() {
    let scene = Scene::new();
    let mut bytes = database(&scene, "lmdb");
    // The size of the WebP file that the first overflow page begins with.
    let at = (0..bytes.len()).step_by(4096).find(|page| bytes[page + 16..].starts_with(b"RIFF")).unwrap();
    bytes[at + 16..at + 20].copy_from_slice(b"JUNK");
    scene.write("lmdb/data.mdb", &bytes);
    let out = job(&scene, "lmdb", "out");
    // The eleventh key: 10 times 7919.
    assert_refused(&out, &["the image of key 0000000000000000000000000000000000013556", "cannot be"]);
    assert_eq!(names(&out.out).len(), 10);
}

#[test]
fn databases_that_are_cut_off_or_no_databases_are_errors() {
    let scene = Scene::new();
    let bytes = database(&scene, "lmdb");
    for length in [0, 100, 5000, 9000, bytes.len() / 2, bytes.len() - 4096] {
        scene.write("lmdb/data.mdb", &bytes[..length]);
        assert_refused(&job(&scene, "lmdb", "out.npz"), &["data.mdb"]);
        let _ = fs::remove_file(scene.path("out.npz.partial"));
    }
    scene.write("lmdb/data.mdb", &vec![7; 20_000]);
    assert_refused(&job(&scene, "lmdb", "out.npz"), &["not an LMDB database", "zip unpacks to"]);
    assert_refused(&job(&scene, "missing", "out.npz"), &["missing"]);
    // One entry more than there are, in both meta pages.
    let mut missing = bytes.clone();
    for meta in [0, 4096] {
        missing[meta + 120] = 64;
    }
    scene.write("lmdb/data.mdb", &missing);
    assert_refused(&job(&scene, "lmdb", "out.npz"), &["damaged", "1 entries are missing"]);
    // Pages that contain themselves: the root's nodes all lead to the root.
    let mut endless = bytes;
    let is_branch = |page: &&usize| endless[**page + 10] == 1;
    let pages: Vec<usize> = (8192..endless.len()).step_by(4096).collect();
    let root = *pages.iter().find(is_branch).unwrap();
    for at in (root + 16..root + 20).step_by(2) {
        let node = root + usize::from(u16::from_le_bytes([endless[at], endless[at + 1]]));
        endless[node..node + 4].copy_from_slice(&((root / 4096) as u32).to_le_bytes());
    }
    scene.write("lmdb/data.mdb", &endless);
    assert_refused(&job(&scene, "lmdb", "other.npz"), &["damaged", "not what it should be"]);
}
