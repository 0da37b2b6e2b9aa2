//! Emoji from a colour font.

use super::support::{Scene, assert_refused, prepare, prepared};
use ddpm_ip::prepare::{Job, Kind};

fn be16(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

fn be32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

/// A picture of 32x16 pixels: opaque red on the left, half of black over nothing on the right.
fn picture(red: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let pixel = |x, _| image::Rgba(if x < 16 { [red, 0, 0, 255] } else { [0, 0, 0, 128] });
    let image = image::RgbaImage::from_fn(32, 16, pixel);
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A font of a blank glyph and some with bitmaps (OpenType's CBLC and CBDT, image format 17).
fn font(pictures: &[Vec<u8>]) -> Vec<u8> {
    let count = pictures.len() as u16;
    let mut data = be16(&[3, 0]);
    let mut offsets = vec![0];
    for picture in pictures {
        // Height, width, bearings, advance; the length; the picture.
        data.extend([16, 32, 0, 16, 32]);
        data.extend(be32(&[picture.len() as u32]));
        data.extend(picture);
        offsets.push(data.len() as u32 - 4);
    }
    let size =
        [be32(&[8 + 48, 8 + 8 + 4 * offsets.len() as u32, 1, 0]), vec![0; 24], be16(&[1, count]), vec![16, 16, 32, 1]];
    let index = [be16(&[1, count]), be32(&[8]), be16(&[1, 17]), be32(&[4]), be32(&offsets)];
    let locations = [be16(&[3, 0]), be32(&[1]), size.concat(), index.concat()].concat();
    let mut head = vec![0; 54];
    head[18..20].copy_from_slice(&1000u16.to_be_bytes());
    let mut hhea = vec![0; 36];
    hhea[34..36].copy_from_slice(&1u16.to_be_bytes());
    let maxp = [be32(&[0x0000_5000]), be16(&[count + 1])].concat();
    let tables = [(b"CBDT", data), (b"CBLC", locations), (b"head", head), (b"hhea", hhea), (b"maxp", maxp)];
    let mut directory = [be32(&[0x0001_0000]), be16(&[tables.len() as u16, 0, 0, 0])].concat();
    let mut body = Vec::new();
    let begin = directory.len() + 16 * tables.len();
    for (name, mut table) in tables {
        directory.extend(name);
        directory.extend(be32(&[0, (begin + body.len()) as u32, table.len() as u32]));
        table.resize(table.len().next_multiple_of(4), 0);
        body.extend(table);
    }
    [directory, body].concat()
}

fn job(scene: &Scene, source: &str, side: Option<usize>) -> Job {
    Job { image_size: side, ..scene.job(Kind::Emoji, source, "out.npz") }
}

#[test]
fn glyphs_become_squares_over_white_each_once() {
    let scene = Scene::new();
    scene.write("a.ttf", &font(&[picture(200), picture(100), picture(200)]));
    let (shape, values, labels) = prepared(&job(&scene, "a.ttf", Some(2)));
    assert_eq!((shape, labels), (vec![2, 2, 2, 3], None));
    // Each quarter of the square is half picture and half white.
    let expected = |red: u8| [[red, 128, 128], [191; 3], [red, 128, 128], [191; 3]].concat();
    let expected = [expected(228), expected(178)].concat();
    assert!(values.iter().zip(&expected).all(|(&a, &b)| a.abs_diff(b) <= 1), "{values:?}");
    let (shape, values, _) = prepared(&Job { out: scene.path("large.npz"), ..job(&scene, "a.ttf", None) });
    assert_eq!(shape, [2, 32, 32, 3]);
    // White above, then the picture.
    let at = |x: usize, y: usize| &values[3 * (32 * y + x)..][..3];
    assert_eq!([at(0, 7), at(0, 8), at(31, 23), at(31, 24)], [&[255; 3], &[200, 0, 0], &[127; 3], &[255; 3]]);
}

#[test]
fn what_is_no_font_with_pictures_is_refused() {
    let scene = Scene::new();
    scene.write("a.ttf", b"text");
    assert_refused(&job(&scene, "a.ttf", None), &["a.ttf", "is no font that can be read"]);
    scene.write("b.ttf", &font(&[]));
    assert_refused(&job(&scene, "b.ttf", None), &["has no bitmaps", "fonts-noto-color-emoji"]);
    assert!(prepare(&job(&scene, "c.ttf", None)).is_err());
    // A picture that is cut off is named by its glyph.
    let mut cut = picture(1);
    cut.truncate(50);
    scene.write("d.ttf", &font(&[picture(200), cut]));
    assert_refused(&job(&scene, "d.ttf", None), &["d.ttf", "glyph 2"]);
}
