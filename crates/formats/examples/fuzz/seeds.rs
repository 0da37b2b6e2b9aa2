//! Whole files of each format, to begin from.

use ddpm_formats::npz::NpzWriter;
use ddpm_formats::torch::{OptimizerEntries, write_optimizer, write_state_dict};
use flate2::{Compression, write::GzEncoder};
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// An archive of entries.
pub(crate) fn zipped(entries: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        if zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).is_ok() {
            zip.write_all(bytes).unwrap();
        }
    }
    zip.finish().unwrap().into_inner()
}

pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

/// A pickled float32 tensor over the storage `0`.
pub(crate) const TENSOR: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQI0\n(I2\nI3\nt(I3\nI1\ntI00\nNtR";

/// A file of PyTorch's old layout around a pickle.
pub(crate) fn legacy(object: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    bytes.extend(object);
    bytes.extend(b"\x80\x02](U\x010e.");
    bytes.extend(6u64.to_le_bytes());
    bytes.extend([0; 24]);
    bytes
}

/// Pickles of what people save.
pub(crate) fn pickles() -> Vec<Vec<u8>> {
    let tensor = |before: &[u8], after: &[u8]| [before, TENSOR, after].concat();
    vec![
        tensor(b"}Va.b\n", b"s."),
        [b"}Vema.a\n", TENSOR, b"sVmodel.a\n", TENSOR, b"s."].concat(),
        tensor(b"}Vstate_dict\n}Vmodule._orig_mod.a\n", b"ss."),
        [b"](}Va\n", TENSOR, b"sI1\n}Vb\n", TENSOR, b"se."].concat(),
        [
            &b"}Vstate\n}I0\n}Vstep\nI3\nsVexp_avg\n"[..],
            TENSOR,
            b"sVexp_avg_sq\n",
            TENSOR,
            b"sssVparam_groups\n]}Vlr\nF0.5\nsVbetas\n(F0.9\nF0.99\ntsVeps\nF1e-8\nsVweight_decay\nF0.0\nsVparams\n](I0\nesas.",
        ]
        .concat(),
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K\x02K\x03\x86cnumpy\n\
          dtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x06abcdeftbU\x06labels]K\x07au."
            .to_vec(),
        b"\x80\x04\x95\x20\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94]\x94(G?\xf0\0\0\0\0\0\0\x8a\x01\xffNeu.".to_vec(),
        b"ccollections\nOrderedDict\n((lp0\n(lp1\nVa\naI1\naatR.".to_vec(),
    ]
}

pub(crate) fn torch() -> Vec<Vec<u8>> {
    let shapes = [vec![2, 3], vec![4]];
    let entries: Vec<_> =
        shapes.iter().enumerate().map(|(i, shape)| (format!("net.{i}.weight"), shape.clone())).collect();
    let mut model = Cursor::new(Vec::new());
    write_state_dict(&mut model, &entries, |i| vec![1.5; if i == 0 { 6 } else { 4 }]).unwrap();
    let settings = OptimizerEntries {
        shapes: &shapes,
        steps: &[7, 7],
        lr: 1e-4,
        betas: (0.9, 0.99),
        eps: 1e-7,
        weight_decay: 0.05,
    };
    let mut optimizer = Cursor::new(Vec::new());
    write_optimizer(&mut optimizer, &settings, |i, _| vec![0.5; if i == 0 { 6 } else { 4 }]).unwrap();
    let mut all = vec![model.into_inner(), optimizer.into_inner()];
    for pickle in pickles() {
        all.push(legacy(&pickle));
        all.push(zipped(&[("a/data.pkl", pickle.clone()), ("a/data/0", vec![0; 24])], CompressionMethod::Stored));
        all.push(pickle);
    }
    all
}

/// An npy file with this dictionary.
pub(crate) fn npy(dictionary: &str, values: &[u8]) -> Vec<u8> {
    let length = (dictionary.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\0", &length[..], dictionary.as_bytes(), values].concat()
}

pub(crate) fn npz() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut cursor = Cursor::new(Vec::new());
    let mut npz = NpzWriter::new(&mut cursor);
    npz.array::<u8>("arr_0", &[2, 2, 2, 3], |push| push(&[7; 24])).unwrap();
    npz.array::<i64>("arr_1", &[2], |push| push(&[1, 2])).unwrap();
    npz.array::<f32>("x", &[3], |push| push(&[1.0, 2.0, 3.0])).unwrap();
    npz.finish_with("{\"a\": 1}").unwrap();
    all.push(cursor.into_inner());
    for (descr, fortran, shape) in
        [("|u1", "False", "(24,)"), (">i4", "True", "(2, 3)"), ("<f2", "False", "(3, 4)"), ("|O", "False", "(1,)")]
    {
        let head = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let npy = npy(&head, &[1; 24]);
        all.push(zipped(&[("arr_0.npy", npy.clone())], CompressionMethod::Deflated));
        all.push(npy);
    }
    all
}

pub(crate) fn safetensors() -> Vec<Vec<u8>> {
    let values = [1.0f32; 10];
    let mut tensors = [("a.weight".to_string(), &[2, 3][..], &values[..6]), ("b".to_string(), &[4][..], &values[..4])];
    let mut own = Vec::new();
    let text = BTreeMap::from([("config", "a = 1".to_string())]);
    ddpm_formats::safetensors::write(&mut own, &mut tensors, &text, ddpm_formats::safetensors::Width::Single).unwrap();
    let header = r#"{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"v":{"dtype":"BF16","shape":[],"data_offsets":[4,6]}}"#;
    vec![own, headed(header, &[0; 6])]
}

/// A safetensors file with this header.
pub(crate) fn headed(header: &str, numbers: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), numbers].concat()
}

/// Databases that the C library wrote, and one made here.
pub(crate) fn lmdb() -> Vec<Vec<u8>> {
    let meta = |transaction: u64, root: u64, depth: u16, entries: u64, page: u64| {
        let mut meta = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| meta[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &page.to_le_bytes());
        put(10, &8u16.to_le_bytes());
        put(16, &0xBEEF_C0DEu32.to_le_bytes());
        put(20, &1u32.to_le_bytes());
        put(40, &512u32.to_le_bytes());
        put(88 + 6, &depth.to_le_bytes());
        put(88 + 32, &entries.to_le_bytes());
        put(88 + 40, &root.to_le_bytes());
        put(144, &transaction.to_le_bytes());
        meta
    };
    // Nodes are laid from the end of the page.
    let page = |number: u64, flags: u16, nodes: &[Vec<u8>]| {
        let mut page = vec![0; 512];
        page[..8].copy_from_slice(&number.to_le_bytes());
        page[10..12].copy_from_slice(&flags.to_le_bytes());
        page[12..14].copy_from_slice(&(16 + 2 * nodes.len() as u16).to_le_bytes());
        let mut at = 512;
        for (i, node) in nodes.iter().enumerate() {
            at -= node.len().next_multiple_of(2);
            page[at..at + node.len()].copy_from_slice(node);
            page[16 + 2 * i..18 + 2 * i].copy_from_slice(&(at as u16).to_le_bytes());
        }
        page
    };
    let entry = |key: &[u8], value: &[u8]| {
        let length = (value.len() as u32).to_le_bytes();
        [&length[..], &0u16.to_le_bytes(), &(key.len() as u16).to_le_bytes(), key, value].concat()
    };
    let long = |key: &[u8], bytes: u32, page: u64| {
        [&bytes.to_le_bytes()[..], &1u16.to_le_bytes(), &(key.len() as u16).to_le_bytes(), key, &page.to_le_bytes()]
            .concat()
    };
    let below = |page: u64| [&page.to_le_bytes()[..6], &0u16.to_le_bytes()].concat();
    let flat = [
        meta(1, u64::MAX, 0, 0, 0),
        meta(2, 2, 1, 3, 1),
        page(2, 2, &[entry(b"a", b"one"), entry(b"b", b"two"), long(b"c", 600, 3)]),
        page(3, 4, &[]),
        vec![9; 512],
    ];
    let deep = [
        meta(3, 4, 2, 4, 0),
        meta(2, 2, 1, 2, 1),
        page(2, 2, &[entry(b"a", b"one"), entry(b"b", b"two")]),
        page(3, 2, &[entry(b"c", b""), entry(b"d", b"four")]),
        page(4, 1, &[below(2), below(3)]),
    ];
    vec![flat.concat(), deep.concat(), [meta(1, u64::MAX, 0, 0, 0), meta(0, u64::MAX, 0, 0, 1)].concat()]
}

pub(crate) fn idx() -> Vec<Vec<u8>> {
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3][..], &[7; 12]].concat();
    vec![images, vec![0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3]]
}

pub(crate) fn archive() -> Vec<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["a.png", "folder/b.png", "c.txt", &"long/".repeat(40), "d.png"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        tar.append_data(
            &mut header,
            if name.ends_with('/') { format!("{name}e.png") } else { name.into() },
            &b"image"[..],
        )
        .unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let entries = [("b/a.png", vec![1; 9]), ("b.png", vec![2; 90]), ("__MACOSX/._b.png", vec![0])];
    vec![gzipped(&tar), tar, zipped(&entries, CompressionMethod::Deflated), zipped(&entries, CompressionMethod::Stored)]
}

/// Settings of networks of either kind, and of a scheduler.
pub(crate) fn diffusers() -> Vec<Vec<u8>> {
    let ddim = r#"{"_class_name":"UNet2DModel","attention_head_dim":null,"block_out_channels":[128,256],"center_input_sample":false,
        "down_block_types":["DownBlock2D","AttnDownBlock2D"],"downsample_padding":0,"flip_sin_to_cos":false,"freq_shift":1,
        "layers_per_block":2,"norm_eps":1e-06,"sample_size":32,"up_block_types":["AttnUpBlock2D","UpBlock2D"]}"#;
    let adm = r#"{"_class_name":"UNet2DModel","attn_norm_num_groups":32,"block_out_channels":[32,64],"num_class_embeds":10,
        "down_block_types":["ResnetDownsampleBlock2D","AttnDownBlock2D"],"downsample_type":"resnet","in_channels":1,
        "out_channels":2,"resnet_time_scale_shift":"scale_shift","sample_size":[8,8],"upsample_type":"resnet",
        "up_block_types":["AttnUpBlock2D","ResnetUpsampleBlock2D"]}"#;
    let process = r#"{"_class_name":"DDPMScheduler","beta_end":0.02,"beta_schedule":"linear","beta_start":0.0001,
        "clip_sample":true,"num_train_timesteps":1000,"trained_betas":null,"variance_type":"fixed_large"}"#;
    [ddim, adm, process].map(|text| text.as_bytes().to_vec()).into()
}
