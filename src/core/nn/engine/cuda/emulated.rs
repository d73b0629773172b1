//! A card that is a process on this machine: the same kernels, compiled by the system's C++ compiler against `emulate.h`.
//!
//! It proves the kernels and the engine where there is no GPU, and is slow. What a kernel must write whole is filled with
//! NaN before, threads between two barriers run in random order, and with the address sanitizer whatever is read or
//! written outside of its memory ends the process with a report.

use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::card::{Arg, Card, Matrix, Memory, Product, Work, inside};
use super::kernels;
use crate::error::{Error, Result};
use crate::exec;
use crate::fsx;

/// Threads of an emulated block: barriers are dear.
const BLOCK: usize = 16;
/// What the compiler is told; the sanitizers are left out where it has none.
const SANITIZERS: [&str; 3] =
    ["-fsanitize=address", "-fsanitize=bounds,shift,integer-divide-by-zero", "-fno-sanitize-recover=all"];

/// An emulated card.
pub struct Emulated {
    process: Child,
    orders: BufWriter<ChildStdin>,
    allocated: u32,
    sanitized: bool,
}

/// One compilation at a time.
static COMPILER: Mutex<()> = Mutex::new(());

/// The program of the emulated card in `folder`, compiled there unless it is there already; and whether it has sanitizers.
/// `None` where there is no C++ compiler: `CXX`, or `c++`.
fn compiled(folder: &Path) -> Result<Option<(PathBuf, bool)>> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let source = kernels::program();
    let files = kernels::EMULATION.iter().map(|(name, text)| (*name, *text)).chain([("kernels.cu", source.as_str())]);
    let mut digest = Sha256::new();
    files.clone().for_each(|(name, text)| digest.update(format!("{name} {} {text}", text.len())));
    digest.update(SANITIZERS.concat());
    digest.update(compiler.as_encoded_bytes());
    let digest: String = digest.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let place =
        |sanitized: bool| folder.join(format!("emulated-card-{digest}{}", if sanitized { "" } else { "-bare" }));
    let _one = exec::lock(&COMPILER);
    for sanitized in [true, false] {
        if place(sanitized).is_file() {
            return Ok(Some((place(sanitized), sanitized)));
        }
    }
    let room = tempfile::tempdir_in(folder).map_err(|e| Error::io("make a folder in", folder, e))?;
    for (name, text) in files {
        let path = room.path().join(name);
        std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
    }
    let mut said = String::new();
    for sanitized in [true, false] {
        let mut command = Command::new(&compiler);
        command.current_dir(room.path()).args(["-std=c++17", "-O1", "-o", "card", "card.cpp"]);
        let out = match command.args(if sanitized { &SANITIZERS[..] } else { &[] }).output() {
            Ok(out) => out,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("run", Path::new(&compiler), e)),
        };
        if out.status.success() {
            let (made, to) = (room.path().join("card"), place(sanitized));
            std::fs::rename(&made, &to).map_err(|e| Error::io("move to", &to, e))?;
            return Ok(Some((to, sanitized)));
        }
        said = String::from_utf8_lossy(&out.stderr).into_owned();
    }
    Err(Error::environment(format!("{} does not compile the kernels", compiler.display())).detail(said))
}

impl Emulated {
    /// A card whose program is kept in `folder`, with threads in an order drawn from `seed`; none where there is no C++
    /// compiler.
    pub fn new(folder: &Path, seed: u64) -> Result<Option<Self>> {
        fsx::create_dir(folder)?;
        let Some((program, sanitized)) = compiled(folder)? else { return Ok(None) };
        let mut command = Command::new(&program);
        command.arg(seed.to_string()).env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|e| Error::io("run", &program, e))?;
        let Some(orders) = process.stdin.take() else { return Err(Error::defect("emulated card: no way in")) };
        Ok(Some(Emulated { process, orders: BufWriter::new(orders), allocated: 0, sanitized }))
    }

    /// Whether reads and writes out of bounds are seen.
    pub fn sanitized(&self) -> bool {
        self.sanitized
    }

    /// Gives an order: its letter and its words, then bytes.
    fn order(&mut self, letter: u8, words: &[u64], bytes: &[u8]) -> Result<()> {
        let words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let all = [&[letter][..], &words, bytes];
        all.iter().try_for_each(|part| self.orders.write_all(part)).map_err(|_| self.ended())
    }

    /// Why the process has ended.
    fn ended(&mut self) -> Error {
        let mut said = String::new();
        let read = self.process.stderr.take().map(|mut out| out.read_to_string(&mut said));
        match read {
            Some(Ok(_)) => Error::defect("the emulated card stopped").detail(said.trim()),
            _ => Error::defect("the emulated card stopped without a word"),
        }
    }

    fn words(a: &Arg) -> [Option<u64>; 4] {
        let (m, i, f) = (u64::from(b'm'), u64::from(b'i'), u64::from(b'f'));
        match *a {
            Arg::At(memory, at) => [Some(m), Some(memory.id.into()), Some(at as u64), Some(0)],
            Arg::Fill(memory, at, bytes) => [Some(m), Some(memory.id.into()), Some(at as u64), Some(bytes as u64)],
            Arg::Absent => [Some(u64::from(b'p')), Some(0), None, None],
            Arg::Int(v) => [Some(i), Some(u64::from(v as u32)), None, None],
            Arg::Float(v) => [Some(f), Some(u64::from(v.to_bits())), None, None],
        }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        // Its input is still open, so it would wait for ever.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Card for Emulated {
    fn name(&self) -> String {
        format!("emulated card{}", if self.sanitized { "" } else { ", without sanitizers" })
    }

    /// A small card's, so that the rule by which cohorts are split is at work.
    fn room(&self) -> Result<usize> {
        Ok(1 << 30)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory> {
        self.allocated += 1;
        let memory = Memory { id: self.allocated, bytes };
        self.order(b'A', &[memory.id.into(), bytes as u64], &[])?;
        Ok(memory)
    }

    fn release(&mut self, memory: Memory) -> Result<()> {
        self.order(b'F', &[memory.id.into()], &[])
    }

    fn write(&mut self, memory: Memory, at: usize, bytes: &[u8]) -> Result<()> {
        inside("write", memory, at, bytes.len())?;
        self.order(b'W', &[memory.id.into(), at as u64, bytes.len() as u64], bytes)
    }

    fn read(&mut self, memory: Memory, at: usize, bytes: &mut [u8]) -> Result<()> {
        inside("read", memory, at, bytes.len())?;
        self.order(b'R', &[memory.id.into(), at as u64, bytes.len() as u64], &[])?;
        let answer = self.orders.flush().ok().and_then(|()| self.process.stdout.as_mut()?.read_exact(bytes).ok());
        answer.ok_or_else(|| self.ended())
    }

    fn zero(&mut self, memory: Memory, at: usize, bytes: usize) -> Result<()> {
        inside("zero", memory, at, bytes)?;
        self.order(b'Z', &[memory.id.into(), at as u64, bytes as u64], &[])
    }

    fn launch(&mut self, kernel: &'static str, work: Work, args: &[Arg]) -> Result<()> {
        let (blocks, threads) = match work {
            Work::Elements(n) => (n.div_ceil(BLOCK), BLOCK),
            Work::Blocks(n) => (n, BLOCK),
        };
        let mut name = (kernel.len() as u64).to_le_bytes().to_vec();
        name.extend_from_slice(kernel.as_bytes());
        let counts = [blocks as u64, threads as u64, args.len() as u64];
        let words = counts.into_iter().chain(args.iter().flat_map(Self::words).flatten());
        name.extend(words.flat_map(u64::to_le_bytes));
        self.order(b'L', &[], &name)
    }

    fn multiply(&mut self, p: &Product) -> Result<()> {
        let [m, n, k] = p.size.map(|v| v as u64);
        let of = |x: &Matrix| [x.memory.id.into(), 4 * x.at as u64, x.pitch as u64, x.stride as u64, x.turned.into()];
        let sizes = [p.batch as u64, m, n, k, p.add.into()];
        let words: Vec<u64> = [sizes, of(&p.a), of(&p.b), of(&p.c)].concat();
        self.order(b'P', &words, &[])
    }
}
