//! Files made to do harm, and damaged ones.

use super::*;

#[test]
fn tensors_outside_their_storage_are_refused() {
    let numbers = [0; 24];
    let claims = [
        ("6", "0", "7", "1"),
        ("6", "3", "2 2", "3 1"),
        ("1099511627776", "0", "1099511627776", "1"),
        ("6", "0", "1099511627776 1099511627776", "0 0"),
        ("6", "0", "1099511627776", "0"),
        ("1099511627776", "0", "1099511627776", "0"),
        ("6", "-1", "1", "1"),
        ("6", "0", "1", "1 1"),
        ("6", "0", "-1", "1"),
        ("18446744073709551615", "18446744073709551614", "2", "18446744073709551615"),
    ];
    for (elements, offset, shape, strides) in claims {
        let object = one_tensor(elements, offset, shape, strides);
        let file = save(&legacy(&object, 6, &numbers));
        assert!(read_all(file.path()).is_err(), "{shape} {strides}");
    }
    let object = one_tensor("6", "0", "6", "1");
    assert!(read_all(save(&legacy(&object, 6, &numbers)).path()).is_ok());
    for elements in [7, 1 << 40, u64::MAX] {
        let error = read_all(save(&legacy(&object, elements, &numbers)).path()).unwrap_err().to_string();
        assert!(error.contains("cut off"), "{error}");
    }
    // The pickle says six, the archive five.
    assert!(read_all(save(&legacy(&object, 5, &numbers[..20])).path()).is_err());
}

#[test]
fn foreign_functions_are_not_called() {
    let read = pickle(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.").unwrap();
    let value = read.value();
    assert_eq!(value.class(), Some("os.system"));
    assert_eq!(value.arguments().unwrap().items().unwrap().next().unwrap().text().unwrap(), "touch /tmp/pwned");
    let read = pickle(b"\x80\x02cargparse\nNamespace\n)\x81}U\x02lrG?\xf0\0\0\0\0\0\0sb.").unwrap();
    assert_eq!(read.value().class(), Some("argparse.Namespace"));
    assert_eq!(read.value().state().unwrap().get("lr").unwrap().float(), Some(1.0));
}

#[test]
fn nesting_sharing_and_cycles_are_harmless() {
    let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], b".".to_vec()].concat();
    assert_eq!(pickle(&deep).unwrap().value().describe(), "a list of 1");
    let own = pickle(b"]q\0h\0a.").unwrap();
    assert_eq!(own.value().items().unwrap().len(), 1);
    // A list of itself ten times over, a thousand times.
    let bomb = [b"]".to_vec(), b"q\0](h\0h\0h\0h\0h\0h\0h\0h\0h\0h\0e".repeat(1000), b".".to_vec()].concat();
    assert!(pickle(&bomb).is_ok());
    let file = zip(&[("data.pkl", b"]q\0h\0a.")], CompressionMethod::Deflated);
    assert!(TorchFile::open(file.path()).unwrap().parameters().is_err());
    let file = zip(&[("data.pkl", b"}q\0U\x05modelh\0s.")], CompressionMethod::Deflated);
    assert!(TorchFile::open(file.path()).unwrap().parameters().is_err());
    assert!(TorchFile::open(file.path()).unwrap().optimizer().is_err());
}

#[test]
fn repeated_copies_are_refused() {
    let long = "x".repeat(10_000);
    let encode = [
        b"(c_codecs\nencode\nq\0V".to_vec(),
        long.clone().into_bytes(),
        b"\nVlatin1\n\x86q\x01".to_vec(),
        b"h\0h\x01R".repeat(1000),
        b"l.".to_vec(),
    ]
    .concat();
    assert!(pickle(&encode).err().unwrap().contains("repeats itself"));
    let endless = format!("c{long}\n{long}\n.");
    assert!(pickle(endless.as_bytes()).is_err());
    let steps = [b"N0".repeat(2_000_001), b"N.".to_vec()].concat();
    assert!(pickle(&steps).err().unwrap().contains("instructions"));
}

#[test]
fn broken_pickles_are_refused() {
    let broken: [&[u8]; 24] = [
        b"",
        b".",
        b"0.",
        b"(.",
        b"1.",
        b"2.",
        b"(0",
        b"h\0.",
        b"a.",
        b"Na.",
        b"NNa.",
        b"(Nu.",
        b"](Nu.",
        b"}(Nu.",
        b"R.",
        b"NR.",
        b"b.",
        b"NQ.",
        b"t.",
        b"o.",
        b"(o.",
        b"\x93.",
        b"NN\x93.",
        b"\x80\x09.",
    ];
    for bytes in broken {
        assert!(pickle(bytes).is_err(), "{bytes:?}");
    }
    for op in 0..=255u8 {
        for tail in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff.", b"(N(N(N(N)}]N."] {
            let _ = pickle(&[&[b'(', b'N', b'(', b'N', op], tail].concat());
        }
    }
}

#[test]
fn damaged_files_never_panic() {
    for name in ["variant_half.pt", "variant_legacy.pt", "variant_opt000001.pt", "ddim_ckpt.pth"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let length = whole.len();
        // Dense where the structure is: at both ends.
        let places =
            (0..150).map(|i| i * 23).chain((1..150).map(|i| length - i * 31)).chain((1..20).map(|i| i * length / 20));
        for place in places {
            let cut = save(&whole[..place]);
            assert!(read_all(cut.path()).is_err(), "{name} cut off at {place}");
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << (place % 8);
            let _ = read_all(save(&flipped).path());
        }
    }
}

#[test]
fn damaged_pickles_never_panic() {
    let whole = std::fs::read(golden("variant_legacy.pt")).unwrap();
    let object = &whole[..20_000];
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    for _ in 0..2000 {
        let mut bytes = object[random() % 3000..].to_vec();
        for _ in 0..=random() % 4 {
            let place = random() % 2000;
            bytes[place] = random() as u8;
        }
        let mut source = Source::new(&bytes[..], bytes.len() as u64);
        while machine::load(&mut source).is_ok() {}
    }
}

#[test]
fn archives_that_lie_are_refused() {
    let object = one_tensor("2", "0", "2", "1");
    let error =
        |entries: &[(&str, &[u8])]| read_all(zip(entries, CompressionMethod::Deflated).path()).unwrap_err().to_string();
    assert!(
        read_all(zip(&[("a/data.pkl", &object), ("a/data/0", &[0; 8])], CompressionMethod::Deflated).path()).is_ok()
    );
    assert!(read_all(zip(&[("data.pkl", &object), ("data/0", &[0; 8])], CompressionMethod::Deflated).path()).is_ok());
    assert!(error(&[("a/data.pkl", &object), ("a/data/0", &[0; 7])]).contains("too few"));
    assert!(error(&[("a/data.pkl", &object)]).contains("data/0"));
    assert!(error(&[("a/data", &object)]).contains("no data.pkl"));
    assert!(error(&[("a/data.pkl", &object), ("a/byteorder", b"big")]).contains("big-endian"));
    assert!(!TorchFile::is_one(zip(&[("a/x", &object)], CompressionMethod::Deflated).path()));
    assert!(!TorchFile::is_one(save(b"").path()));
    assert!(!TorchFile::is_one(save(b"\x80\x02N.").path()));
    assert!(TorchFile::is_one(zip(&[("a/data.pkl", &object)], CompressionMethod::Deflated).path()));
}

#[test]
fn a_flipped_number_in_an_archive_is_noticed() {
    let mut bytes = std::fs::read(golden("variant_zip.pt")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let error = read_all(save(&bytes).path()).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn a_flipped_name_in_an_archive_is_noticed() {
    let mut bytes = std::fs::read(golden("variant_zip.pt")).unwrap();
    let name = bytes.windows(5).position(|w| w == b"input").unwrap();
    bytes[name] ^= 1;
    let error = read_all(save(&bytes).path()).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn entries_larger_than_the_archive_are_refused() {
    let object = one_tensor("268435456", "0", "268435456", "1");
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let file = zip(&[("a/data.pkl", &object), ("a/data/0", &[0; 8])], method);
        let mut bytes = std::fs::read(file.path()).unwrap();
        let last = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
        // Compressed and full size in the directory.
        bytes[last + 20..last + 28].copy_from_slice(&[0, 0, 0, 0x40, 0, 0, 0, 0x40]);
        let error = read_all(save(&bytes).path()).unwrap_err().to_string();
        assert!(error.contains("claims 1073741824 bytes"), "{error}");
    }
}

#[test]
fn a_compressed_pickle_with_a_text_of_megabytes_is_refused() {
    // Found by fuzzing: 110 KB became a line of 25 MB, and that line 84 MB in memory.
    let long = [b"V".as_slice(), &vec![b'a'; 3 << 20], b"\n."].concat();
    for (method, refused) in [(CompressionMethod::Deflated, true), (CompressionMethod::Stored, false)] {
        let error = read_all(zip(&[("a/data.pkl", &long)], method).path()).unwrap_err().to_string();
        assert_eq!(error.contains("save it again with torch.save"), refused, "{error}");
    }
    // Names and shapes of ten thousand tensors compress well, and are no such text.
    let names: Vec<u8> =
        (0..10_000).flat_map(|i| format!("Vinput_blocks.{i}.weight\n0").into_bytes()).chain(*b"N.").collect();
    let error = read_all(zip(&[("a/data.pkl", &names)], CompressionMethod::Deflated).path()).unwrap_err().to_string();
    assert!(!error.contains("torch.save"), "{error}");
}
