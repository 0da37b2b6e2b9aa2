//! Features from ONNX models; `onnx/make.py` made them, and what they give.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fidelity::{FidelityError, Onnx};
use rten_onnx::onnx::{AttributeProto, DataLocation, Dimension, ModelProto, StringStringEntryProto};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx").join(name)
}

/// Rows that ONNX's reference evaluator gives, flat.
fn expected(name: &str) -> Vec<f32> {
    let text = std::fs::read_to_string(path("expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = all[name].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
    rows.map(|value| value.as_f64().unwrap() as f32).collect()
}

/// The images of `make.py`.
fn images(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f64 / 50.0 - 1.0) as f32).collect()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-5, "{found:?} where {expected:?} is expected");
    }
}

/// The encoder after a change to it, in a folder of its own.
fn changed(change: impl FnOnce(&mut ModelProto, &Path)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let mut model = ModelProto::parse_buf(&std::fs::read(path("encoder.onnx")).unwrap()).unwrap();
    change(&mut model, folder.path());
    let file = folder.path().join("m.onnx");
    std::fs::write(&file, model.write_buf().unwrap()).unwrap();
    (folder, file)
}

fn problem(result: Result<Onnx, FidelityError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn golden_features_and_tokens() {
    let onnx = Onnx::load(&path("encoder.onnx"), Some(6), None).unwrap();
    assert_eq!((onnx.channels(), onnx.size(), onnx.width()), (3, 6, 5));
    assert_close(&onnx.features(&images(3 * 108), 3).unwrap(), &expected("features"));
    let onnx = Onnx::load(&path("encoder.onnx"), Some(6), Some("tokens")).unwrap();
    assert_eq!(onnx.width(), 4);
    assert_close(&onnx.features(&images(3 * 108), 3).unwrap(), &expected("tokens"));
}

#[test]
fn an_image_has_its_features_in_any_batch() {
    let onnx = Onnx::load(&path("encoder.onnx"), Some(6), None).unwrap();
    let images = images(7 * 108);
    let together = onnx.features(&images, 7).unwrap();
    for (image, row) in images.chunks(108).zip(together.chunks(5)) {
        assert_close(&onnx.features(image, 1).unwrap(), row);
    }
    assert!(onnx.features(&[], 0).unwrap().is_empty());
}

#[test]
fn golden_fixed_batch_is_filled_up() {
    let onnx = Onnx::load(&path("pair.onnx"), None, None).unwrap();
    assert_eq!((onnx.channels(), onnx.size(), onnx.width()), (1, 4, 3));
    let (images, rows) = (images(32), expected("pair"));
    assert_close(&onnx.features(&images, 2).unwrap(), &rows);
    assert_close(&onnx.features(&images[..16], 1).unwrap(), &rows[..3]);
    assert_close(&onnx.features(&[&images[..], &images[16..]].concat(), 3).unwrap(), &[&rows[..], &rows[3..]].concat());
    assert!(onnx.features(&[], 0).unwrap().is_empty());
}

#[test]
fn images_of_another_shape_are_refused() {
    let onnx = Onnx::load(&path("pair.onnx"), Some(4), None).unwrap();
    let error = onnx.features(&[0.0; 31], 2).unwrap_err();
    assert_eq!(error, FidelityError::ShapeMismatch { rows: 2, width: 16, found: 31 });
    assert!(onnx.features(&[0.0; 16], usize::MAX).is_err());
}

#[test]
fn sizes_have_to_be_known_and_fit() {
    let load = |name, size| problem(Onnx::load(&path(name), size, None));
    assert!(load("encoder.onnx", None).ends_with("it takes images of any size: give the size with --feature-size"));
    assert!(load("pair.onnx", Some(5)).ends_with("it takes images of 4x4, but images of 5x5 are wanted"));
    for size in [0, 1, 1 << 20, usize::MAX] {
        assert!(Onnx::load(&path("encoder.onnx"), Some(size), None).is_err());
    }
    let (_folder, oblong) = changed(|model, _| sizes(model, [Some(1), Some(3), Some(6), Some(8)]));
    assert!(problem(Onnx::load(&oblong, None, None)).ends_with("it takes images of 6x8, but square ones are wanted"));
    let (_folder, half) = changed(|model, _| sizes(model, [None, None, Some(6), None]));
    assert_close(&Onnx::load(&half, None, None).unwrap().features(&images(3 * 108), 3).unwrap(), &expected("features"));
}

fn sizes(model: &mut ModelProto, sizes: [Option<i64>; 4]) {
    let input = &mut model.graph.as_mut().unwrap().input[0];
    let shape = input.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape.as_mut().unwrap();
    shape.dim = sizes.map(|size| Dimension { dim_value: size, ..Dimension::default() }).to_vec();
}

#[test]
fn inputs_and_outputs_are_named_in_errors() {
    let (_folder, wide) = changed(|model, _| sizes(model, [None, Some(4), Some(6), Some(6)]));
    let error = problem(Onnx::load(&wide, None, None));
    assert!(error.ends_with("its inputs are images [unnamed_1, 4, 6, 6]"), "{error}");
    let (_folder, two) = changed(|model, _| {
        let graph = model.graph.as_mut().unwrap();
        let mut other = graph.input[0].clone();
        other.name = Some("others".into());
        graph.input.push(other);
    });
    let error = problem(Onnx::load(&two, Some(6), None));
    assert!(error.contains("others [batch, 3, height, width]"), "{error}");
    let error = problem(Onnx::load(&path("encoder.onnx"), Some(6), Some("pooled")));
    assert!(error.contains("its outputs are tokens [batch, ") && error.ends_with("features [batch, 5]"), "{error}");
}

/// Moves the kernel to a file.
fn outside(model: &mut ModelProto, folder: &Path, name: &str, length: &str) {
    let kernel = &mut model.graph.as_mut().unwrap().initializer[0];
    let bytes = kernel.raw_data.take().unwrap().into_inner();
    std::fs::write(folder.join("weights.data"), [&[7; 16], &bytes[..]].concat()).unwrap();
    kernel.data_location = Some(DataLocation::EXTERNAL);
    for (key, value) in [("location", name), ("offset", "16"), ("length", length)] {
        let (key, value) = (Some(key.to_owned()), Some(value.to_owned()));
        kernel.external_data.push(StringStringEntryProto { key, value });
    }
}

#[test]
fn weights_lie_beside_the_model_and_nowhere_else() {
    let (_folder, file) = changed(|model, folder| outside(model, folder, "weights.data", "192"));
    let onnx = Onnx::load(&file, Some(6), None).unwrap();
    assert_eq!(onnx.files_beside(), [file.with_file_name("weights.data")]);
    assert_close(&onnx.features(&images(3 * 108), 3).unwrap(), &expected("features"));
    for name in ["missing.data", "../weights.data", "/etc/hostname", "weights", "", ".", ".."] {
        let (_folder, file) = changed(|model, folder| outside(model, folder, name, "192"));
        assert!(Onnx::load(&file, Some(6), None).is_err(), "{name}");
    }
    for length in ["196", "18446744073709551615", "1000000000000000", "-1"] {
        let (_folder, file) = changed(|model, folder| outside(model, folder, "weights.data", length));
        assert!(Onnx::load(&file, Some(6), None).is_err(), "{length}");
    }
}

#[test]
fn cubic_resizing_of_other_kinds_is_refused() {
    let (_folder, file) = changed(|model, _| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let resize = nodes.iter_mut().find(|node| node.op_type.as_deref() == Some("Resize")).unwrap();
        resize.attribute.push(AttributeProto {
            name: Some("coordinate_transformation_mode".into()),
            s: Some("asymmetric".into()),
            ..AttributeProto::default()
        });
    });
    assert!(problem(Onnx::load(&file, Some(6), None)).contains("resizes cubically"));
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.onnx");
    for (name, size) in [("encoder.onnx", Some(6)), ("pair.onnx", None)] {
        let whole = std::fs::read(path(name)).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).unwrap();
            assert!(Onnx::load(&file, size, None).is_err(), "{length} bytes of {name}");
        }
        for (i, flip) in (0..whole.len()).flat_map(|i| [1, 128].map(|flip| (i, flip))) {
            let mut bytes = whole.clone();
            bytes[i] ^= flip;
            std::fs::write(&file, bytes).unwrap();
            // Many still are models; some of them give something else.
            if let Ok(onnx) = Onnx::load(&file, size, None) {
                let values = onnx.channels() * onnx.size() * onnx.size();
                let _ = onnx.features(&images(3 * values), 3);
            }
        }
    }
    assert!(Onnx::load(folder.path(), None, None).is_err());
    assert!(Onnx::load(&folder.path().join("missing.onnx"), None, None).is_err());
}
