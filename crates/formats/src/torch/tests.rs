mod hostile;

use super::*;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// The folder of files that PyTorch wrote.
pub(super) fn golden(name: &str) -> PathBuf {
    let folder = std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden").into(), PathBuf::from);
    folder.join(name)
}

/// The golden README's weights: floats in [0, 1) from a 64-bit hash of name and index, scaled by the shape.
fn formula(salt: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    let hash = format!("{salt}/{name}")
        .bytes()
        .fold(0xCBF29CE484222325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001B3));
    let count: usize = shape.iter().product();
    let fan_in = count / shape[0];
    (1..=count as u64)
        .map(|i| {
            let z = hash.wrapping_add(i.wrapping_mul(0x9E3779B97F4A7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
            let u = ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24);
            if shape.len() == 1 {
                (f64::from(u8::from(name.ends_with("weight"))) + 0.4 * (u - 0.5)) as f32
            } else {
                ((2.0 * u - 1.0) * (3.0 / fan_in as f64).sqrt()) as f32
            }
        })
        .collect()
}

pub(super) fn save(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub(super) fn pickle(bytes: &[u8]) -> Result<Pickle, Fault> {
    Pickle::read(bytes, bytes.len() as u64)
}

/// A file in the old layout around a pickle, with one storage `0` of bytes.
pub(super) fn legacy(object: &[u8], elements: u64, storage: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    bytes.extend_from_slice(object);
    bytes.extend_from_slice(b"\x80\x02](U\x010e.");
    bytes.extend_from_slice(&elements.to_le_bytes());
    bytes.extend_from_slice(storage);
    bytes
}

/// A pickled float32 tensor over the storage `0`; lengths and strides are separated by spaces.
pub(super) fn tensor(elements: &str, offset: &str, shape: &str, strides: &str) -> String {
    let ints = |list: &str| list.split_whitespace().flat_map(|n| ["I", n, "\n"]).collect::<String>();
    let (elements, offset, shape, strides) = (ints(elements), ints(offset), ints(shape), ints(strides));
    let storage = format!("(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n{elements}tQ");
    format!("ctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}({shape}t({strides}tI00\nNtR")
}

/// A pickled dictionary of one tensor `w`.
fn one_tensor(elements: &str, offset: &str, shape: &str, strides: &str) -> Vec<u8> {
    format!("}}Vw\n{}s.", tensor(elements, offset, shape, strides)).into_bytes()
}

/// An archive in memory.
fn zip(entries: &[(&str, &[u8])], method: CompressionMethod) -> tempfile::NamedTempFile {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    save(&zip.finish().unwrap().into_inner())
}

/// Reads all there is in a file.
fn read_all(path: &Path) -> Result<(), Error> {
    let mut file = TorchFile::open(path)?;
    if let Ok(optimizer) = file.optimizer() {
        for tensor in optimizer.exp_avg.iter().chain(&optimizer.exp_avg_sq) {
            file.floats(tensor)?;
        }
        return Ok(());
    }
    for (_, tensor) in file.parameters()? {
        file.floats(&tensor)?;
    }
    Ok(())
}

fn assert_golden(name: &str, salt: &str, tolerance: f32) {
    let path = golden(name);
    assert!(TorchFile::is_one(&path));
    let mut file = TorchFile::open(&path).unwrap();
    let parameters = file.parameters().unwrap();
    assert!(parameters.len() > 50, "{}", parameters.len());
    for (parameter, tensor) in parameters {
        let expected = formula(salt, &parameter, tensor.shape());
        let values = file.floats(&tensor).unwrap();
        assert_eq!(values.len(), expected.len());
        let off = values.iter().zip(&expected).map(|(a, b)| (a - b).abs() / b.abs().max(1e-3)).fold(0.0, f32::max);
        assert!(off <= tolerance, "{name}: {parameter} is off by {off}");
    }
}

#[test]
fn golden_networks_are_read_in_every_layout() {
    assert_golden("variant_zip.pt", "tiny", 0.0);
    assert_golden("variant_legacy.pt", "tiny", 0.0);
    assert_golden("variant_wrapped.pt", "tiny", 0.0);
    assert_golden("variant_half.pt", "tiny", 1e-3);
    assert_golden("ddim_ckpt.pth", "ddim", 0.0);
}

#[test]
fn golden_optimizer_is_read() {
    let mut model = TorchFile::open(&golden("variant_zip.pt")).unwrap();
    let mut file = TorchFile::open(&golden("variant_opt000001.pt")).unwrap();
    let shapes = |list: &[Tensor]| list.iter().map(|t| t.shape().to_vec()).collect::<Vec<_>>();
    let parameters: Vec<_> = model.parameters().unwrap().into_iter().map(|(_, t)| t).collect();
    let optimizer = file.optimizer().unwrap();
    assert_eq!(shapes(&optimizer.exp_avg), shapes(&parameters));
    assert_eq!(shapes(&optimizer.exp_avg_sq), shapes(&parameters));
    assert!(optimizer.steps.iter().all(|&s| s == 1));
    assert_eq!((optimizer.betas, optimizer.eps), ((0.9, 0.999), 1e-8));
    // After one step the means are (1 - beta1) g and (1 - beta2) g^2.
    let mut largest = 0.0f32;
    for (mean, square) in optimizer.exp_avg.iter().zip(&optimizer.exp_avg_sq) {
        for (m, s) in file.floats(mean).unwrap().into_iter().zip(file.floats(square).unwrap()) {
            assert!((s - m * m * 0.1).abs() <= 1e-5 * s + 1e-12, "{m} {s}");
            largest = largest.max(s);
        }
    }
    assert!(largest > 0.0);
    let error = file.parameters().unwrap_err().to_string();
    assert!(error.contains("optimizer's state"), "{error}");
    assert!(model.optimizer().unwrap_err().to_string().contains("no optimizer's state"));
}

#[test]
fn what_is_written_is_read() {
    let entries = vec![
        ("time.0.weight".to_string(), vec![2, 3]),
        ("scalar \u{3b5}".into(), vec![]),
        ("empty".into(), vec![0, 4]),
        ("large".into(), vec![300, 100]),
    ];
    let values = |index: usize| -> Vec<f32> {
        let count: usize = entries[index].1.iter().product();
        (0..count).map(|i| (i as f32 - 2.5) * 1.1f32.powi(index as i32)).collect()
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write_state_dict(file.as_file_mut(), &entries, values).unwrap();
    let mut read = TorchFile::open(file.path()).unwrap();
    let parameters = read.parameters().unwrap();
    assert_eq!(parameters.len(), entries.len());
    for (index, (name, tensor)) in parameters.into_iter().enumerate() {
        assert_eq!((name.as_str(), tensor.shape()), (entries[index].0.as_str(), &entries[index].1[..]));
        assert_eq!(read.floats(&tensor).unwrap(), values(index));
    }
    let mut archive = ZipArchive::new(file.reopen().unwrap()).unwrap();
    for index in 0..archive.len() {
        assert_eq!(archive.by_index(index).unwrap().data_start().unwrap() % 64, 0);
    }
    let error = write_state_dict(Cursor::new(Vec::new()), &entries, |_| [0.0; 6]).unwrap_err();
    assert!(error.to_string().contains("6 values"), "{error}");
}

#[test]
fn a_written_optimizer_is_read() {
    let shapes = vec![vec![2, 3], vec![4]];
    let entries = OptimizerEntries {
        shapes: &shapes,
        steps: &[7, 1_000_000],
        lr: 1e-4,
        betas: (0.9, 0.99),
        eps: 1e-7,
        weight_decay: 0.05,
    };
    let values = |index: usize, moment: Moment| -> Vec<f32> {
        let of_moment = if moment == Moment::First { -1.0 } else { 1.0 };
        (0..shapes[index].iter().product()).map(|i| of_moment * (i + 10 * index) as f32).collect()
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write_optimizer(file.as_file_mut(), &entries, values).unwrap();
    let mut read = TorchFile::open(file.path()).unwrap();
    let optimizer = read.optimizer().unwrap();
    assert_eq!(optimizer.steps, entries.steps);
    assert_eq!((optimizer.lr, optimizer.betas), (1e-4, (0.9, 0.99)));
    assert_eq!((optimizer.eps, optimizer.weight_decay), (1e-7, 0.05));
    for (index, (mean, square)) in optimizer.exp_avg.iter().zip(&optimizer.exp_avg_sq).enumerate() {
        assert_eq!(mean.shape(), shapes[index]);
        assert_eq!(read.floats(mean).unwrap(), values(index, Moment::First));
        assert_eq!(read.floats(square).unwrap(), values(index, Moment::Second));
    }
    let wrong = OptimizerEntries { steps: &[7], ..entries };
    assert!(write_optimizer(Cursor::new(Vec::new()), &wrong, values).is_err());
}

#[test]
fn views_of_a_storage_are_read() {
    let numbers: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let file = save(&legacy(&one_tensor("6", "1", "2 2", "1 3"), 6, &numbers));
    let mut read = TorchFile::open(file.path()).unwrap();
    let (name, tensor) = read.parameters().unwrap().remove(0);
    assert_eq!(name, "w");
    assert_eq!(read.floats(&tensor).unwrap(), [1.0, 4.0, 2.0, 5.0]);
    assert_eq!(read.doubles(&tensor).unwrap(), [1.0, 4.0, 2.0, 5.0]);
    // Parts of an archive's entry, compressed and not.
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let file = zip(&[("a/data.pkl", &one_tensor("6", "1", "2 2", "1 3")), ("a/data/0", &numbers)], method);
        let mut read = TorchFile::open(file.path()).unwrap();
        assert_eq!(read.floats(&tensor).unwrap(), [1.0, 4.0, 2.0, 5.0]);
        let file = zip(&[("a/data.pkl", &one_tensor("6", "0", "2", "3")), ("a/data/0", &numbers)], method);
        let mut read = TorchFile::open(file.path()).unwrap();
        let (_, tensor) = read.parameters().unwrap().remove(0);
        assert_eq!(read.floats(&tensor).unwrap(), [0.0, 3.0]);
    }
    // Before 2018 a storage could itself be a view of another.
    let object = String::from_utf8(one_tensor("6", "1", "2", "1")).unwrap();
    let object = object.replace("I6\ntQ", "I6\n(V9\nI3\nI3\nttQ");
    let file = save(&legacy(object.as_bytes(), 6, &numbers));
    let mut read = TorchFile::open(file.path()).unwrap();
    let (_, tensor) = read.parameters().unwrap().remove(0);
    assert_eq!(read.floats(&tensor).unwrap(), [4.0, 5.0]);
}

#[test]
fn numpy_arrays_are_read() {
    // Python 2's `{'data': array([[1, 2, 3], [4, 5, 6]], uint8), 'labels': [7]}`, in C and Fortran order.
    let array = |order: u8, bytes: &str| {
        let mut all =
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R".to_vec();
        all.extend_from_slice(b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb");
        all.extend_from_slice(&[order, b'U', bytes.len() as u8]);
        all.extend_from_slice(bytes.as_bytes());
        all.extend_from_slice(b"tbU\x06labels]K\x07au.");
        all
    };
    for (order, bytes) in [(0x89, "\x01\x02\x03\x04\x05\x06"), (0x88, "\x01\x04\x02\x05\x03\x06")] {
        let read = pickle(&array(order, bytes)).unwrap();
        let data = read.value().get("data").unwrap().array().unwrap();
        assert_eq!((data.dtype, data.shape), (Dtype::U8, &[2, 3][..]));
        assert_eq!(&*data.bytes(), [1, 2, 3, 4, 5, 6]);
        let labels: Vec<_> = read.value().get("labels").unwrap().items().unwrap().map(|v| v.int().unwrap()).collect();
        assert_eq!(labels, [7]);
    }
    let short = pickle(&array(0x89, "\x01")).unwrap();
    assert!(short.value().get("data").unwrap().array().is_none());
}
