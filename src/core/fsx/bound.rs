//! What a reader takes at most, said before it allocates.

use std::path::Path;

use crate::error::{Error, Result};

/// A text that is read whole: a list of images, records, captions.
pub const TEXT: u64 = 1 << 29;
/// A config, and a text that one person wrote.
pub const WRITTEN: u64 = 1 << 24;
/// What is no file with a length: a pipe, a device.
pub const STREAM: u64 = 1 << 28;
/// One thing that is said: a caption, a prompt, a member of a shard.
pub const SAID: usize = 1 << 18;
/// Objects in a JSON text (each takes some 600 bytes).
pub const OBJECTS: usize = 1 << 22;
/// Values in a JSON text.
pub const VALUES: usize = 1 << 25;

/// The error of what is longer than a reader takes.
pub fn too_long(what: impl std::fmt::Display, length: impl std::fmt::Display, most: u64) -> Error {
    Error::data(format!("{what}: {length} bytes, the most that is read is {most}"))
}

/// Refuses a text of one thing said that nobody can have meant as one.
pub fn said(text: &str) -> Result<()> {
    match text.len() > SAID {
        true => Err(too_long("a text", text.len(), SAID as u64)),
        false => Ok(()),
    }
}

/// The product of a shape, if it is one that memory could hold.
pub fn volume(shape: &[usize]) -> Option<usize> {
    // A 0 anywhere makes nothing of the largest others.
    match shape.contains(&0) {
        true => Some(0),
        false => shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).filter(|n| isize::try_from(*n).is_ok()),
    }
}

/// Room for so many bytes, or an error where the machine has none.
pub fn room(path: &Path, bytes: u64) -> Result<Vec<u8>> {
    let (mut room, wanted) = (Vec::new(), usize::try_from(bytes).unwrap_or(usize::MAX));
    match room.try_reserve_exact(wanted) {
        Ok(()) => Ok(room),
        Err(_) => Err(Error::environment(format!("{}: no memory for its {bytes} bytes", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_overflows_has_no_volume_and_one_with_a_zero_has_none_at_all() {
        assert_eq!(volume(&[2, 3, 4]), Some(24));
        assert_eq!(volume(&[1 << 40, 1 << 40]), None);
        assert_eq!(volume(&[1 << 40, 1 << 40, 0]), Some(0));
        assert_eq!(volume(&[]), Some(1));
    }
}
