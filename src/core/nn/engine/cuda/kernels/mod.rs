//! The kernels' source: one program, made of the files of this folder.

/// The files that make the program, in their order.
pub const FILES: [(&str, &str); 8] = [
    ("prelude.cu", include_str!("prelude.cu")),
    ("rows.cu", include_str!("rows.cu")),
    ("conv.cu", include_str!("conv.cu")),
    ("norm.cu", include_str!("norm.cu")),
    ("pooling.cu", include_str!("pooling.cu")),
    ("dropout.cu", include_str!("dropout.cu")),
    ("loss.cu", include_str!("loss.cu")),
    ("update.cu", include_str!("update.cu")),
];

/// The emulated card: its header and its program, which includes `kernels.cu`.
pub const EMULATION: [(&str, &str); 2] =
    [("emulate.h", include_str!("emulate.h")), ("card.cpp", include_str!("card.cpp"))];

/// The program for a compiler of CUDA, or of C++ with `emulate.h` beside it. Errors name lines of the files.
pub fn program() -> String {
    FILES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}")).collect()
}

/// The names of all kernels, in the program's order.
pub fn names() -> Vec<&'static str> {
    let of = |line: &'static str| {
        let rest = line.strip_prefix("KERNEL(").or(line.strip_prefix("BLOCK_KERNEL("))?;
        rest.split(',').next()
    };
    FILES.iter().flat_map(|(_, text)| text.lines().filter_map(of)).collect()
}
