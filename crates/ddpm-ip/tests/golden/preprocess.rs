//! The centre crop against Pillow's, byte for byte, through a data set as training opens it.

use super::support::{cases, folder, open};
use ddpm_ip::data::{Dataset, Options};

#[test]
fn golden_preprocess() {
    for case in cases("preprocess") {
        let image = case["image"].as_str().unwrap();
        let expected = open(&case, "file").bytes("expected").unwrap();
        let &[size, _, channels] = expected.shape.as_slice() else { panic!("{image}: {:?}", expected.shape) };
        assert_eq!(case["resolution"], size);
        let alone = tempfile::tempdir().unwrap();
        std::fs::copy(folder().join(image), alone.path().join("image.png")).unwrap();
        let options = Options { allow_upscale: true, ..Options::new(size, channels) };
        let data = Dataset::open(alone.path().to_str().unwrap(), &options).unwrap();
        assert!(data.image(0).unwrap() == expected.values, "{image}: not what Pillow makes of it");
    }
}
