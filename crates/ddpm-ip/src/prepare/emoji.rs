//! Emoji: the bitmaps of a colour font, such as Debian's fonts-noto-color-emoji.

use super::maker::{Body, Maker};
use super::source::Source;
use crate::Error;
use crate::data::{Pixels, folder};
use crate::event::Event;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use ttf_parser::{Face, GlyphId, RasterImageFormat, name_id};

/// The largest font that is read.
const MOST_BYTES: u64 = 1 << 28;

/// The glyphs of a font that have bitmaps, each picture once.
pub(super) struct Emoji {
    path: PathBuf,
    font: Vec<u8>,
    glyphs: Vec<GlyphId>,
}

impl Emoji {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let length = path.metadata().map_err(Error::io("read", path))?.len();
        if length > MOST_BYTES || path.is_dir() {
            return Err(Error::file(path, "is no font: name a file such as NotoColorEmoji.ttf"));
        }
        let font = std::fs::read(path).map_err(Error::io("read", path))?;
        let face = Face::parse(&font, 0).map_err(|e| Error::file(path, format!("is no font that can be read: {e}")))?;
        let mut seen = HashSet::new();
        let all = (0..face.number_of_glyphs()).map(GlyphId);
        let glyphs: Vec<GlyphId> =
            all.filter(|&glyph| png(&face, glyph).is_some_and(|bytes| seen.insert(bytes))).collect();
        if glyphs.is_empty() {
            let message = "has no bitmaps of glyphs: name a font that has, such as Debian's NotoColorEmoji.ttf in \
                           /usr/share/fonts/truetype/noto (package fonts-noto-color-emoji)";
            return Err(Error::file(path, message));
        }
        Ok(Self { path: path.to_path_buf(), font, glyphs })
    }

    fn face(&self) -> Result<Face<'_>, Error> {
        Face::parse(&self.font, 0).map_err(|e| Error::file(&self.path, e.to_string()))
    }
}

/// The bitmap of a glyph, in its largest size.
fn png<'a>(face: &'a Face<'_>, glyph: GlyphId) -> Option<&'a [u8]> {
    let image = face.glyph_raster_image(glyph, u16::MAX)?;
    (image.format == RasterImageFormat::PNG && !image.data.is_empty()).then_some(image.data)
}

impl Source for Emoji {
    fn expected(&self) -> Option<usize> {
        None
    }

    fn count(&self) -> Option<usize> {
        Some(self.glyphs.len())
    }

    fn feed(&self, maker: &mut Maker) -> Result<(), Error> {
        let face = self.face()?;
        let says = |id| face.names().into_iter().find(|name| name.name_id == id).and_then(|name| name.to_string());
        if let Some(licence) = says(name_id::LICENSE) {
            (maker.emit)(Event::Notice(format!("the font says of its licence: {licence}")));
        }
        for &glyph in &self.glyphs {
            let load = || {
                let bytes = png(&face, glyph).unwrap_or_default();
                let failed = |e| Error::file(&self.path, format!("glyph {}: {e}", glyph.0));
                Ok(Body::Pixels(squared(folder::decode_over_white(bytes).map_err(failed)?)))
            };
            if maker.offer(format!("glyph_{:05}", glyph.0), None, load)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// A colour picture in the middle of a white square.
fn squared(image: Pixels) -> Pixels {
    let side = image.width.max(image.height);
    let (left, top, row) = ((side - image.width) / 2, (side - image.height) / 2, 3 * image.width);
    let mut data = vec![255; 3 * side * side];
    for (y, pixels) in image.data.chunks_exact(row).enumerate() {
        let at = 3 * ((top + y) * side + left);
        data[at..at + row].copy_from_slice(pixels);
    }
    Pixels { width: side, height: side, channels: 3, data }
}
