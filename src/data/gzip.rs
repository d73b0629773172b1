//! Texts that may be gzipped, as lists, captions and sets of questions are often published.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::fsx::bound;

/// The bytes of a text file as they lie there, unpacked where they are gzipped; at most [`bound::TEXT`] of them.
pub(super) fn unpacked(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut text = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(bytes.as_slice()).take(bound::TEXT + 1).read_to_end(&mut text);
    read.map_err(|_| Error::data(format!("{}: a gzipped file that is cut off or damaged", path.display())))?;
    match text.len() as u64 > bound::TEXT {
        true => Err(bound::too_long(path.display(), format!("unpacked more than {}", bound::TEXT), bound::TEXT)),
        false => Ok(text),
    }
}
