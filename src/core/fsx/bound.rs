//! What a reader takes at most, said before it allocates.

use std::io::Read;
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

/// Bytes of an `.npy` file's header, and brackets inside of each other in it.
const HEADER: usize = 1 << 16;
const DEPTH: usize = 8;

/// An `.npy` file whose header is short and shallow: the time that its parser takes doubles with every bracket.
pub fn npy<R: Read>(mut file: R) -> std::io::Result<impl Read> {
    let refuse = |what: &str| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    let mut begin = vec![0; 8];
    file.read_exact(&mut begin)?;
    // Version 1 has a length of two bytes, the later ones of four.
    let mut length = [0; 4];
    let width = if begin[6] == 1 { 2 } else { 4 };
    file.read_exact(&mut length[..width])?;
    let size = u32::from_le_bytes(length) as usize;
    if size > HEADER {
        return refuse("an npy header of more than 64 KiB");
    }
    begin.extend_from_slice(&length[..width]);
    let from = begin.len();
    begin.resize(from + size, 0);
    file.read_exact(&mut begin[from..])?;
    let mut depth = 0usize;
    for byte in &begin[from..] {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return refuse("an npy header of more than 8 brackets inside of each other");
        }
    }
    Ok(std::io::Cursor::new(begin).chain(file))
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

    #[test]
    fn a_header_of_many_brackets_or_of_great_length_is_refused_and_a_whole_file_comes_through() {
        let file = |header: &str, claimed: usize| {
            [b"\x93NUMPY\x01\x00".as_slice(), &(claimed as u16).to_le_bytes(), header.as_bytes(), b"numbers"].concat()
        };
        let plain = "{'descr': [('a', '<f4', (2,))], 'fortran_order': False, 'shape': (3,), }\n";
        let mut through = Vec::new();
        let whole = file(plain, plain.len());
        npy(whole.as_slice()).unwrap().read_to_end(&mut through).unwrap();
        assert_eq!(through, whole);
        let deep = "(3,".repeat(30);
        assert!(npy(file(&deep, deep.len()).as_slice()).is_err());
        assert!(npy(file("{", 60_000).as_slice()).is_err(), "cut off");
        let long = [b"\x93NUMPY\x02\x00".as_slice(), &u32::MAX.to_le_bytes()].concat();
        assert!(npy(long.as_slice()).is_err());
    }
}
