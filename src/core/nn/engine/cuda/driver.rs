//! A card through CUDA's driver: kernels compiled at the start by NVRTC, products by cuBLAS, one stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::cuda_backend::cudarc;
use cudarc::cublas::{CudaBlas, result::sgemm_strided_batched, sys as blas};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};

use super::card::{Arg, Card, Matrix, Memory, Product, Work, inside};
use super::kernels;
use crate::error::{Error, Result};
use crate::exec;

/// Threads of a block.
const BLOCK: usize = 256;

/// What products compute in; sums and everything outside of products are f32 or f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    Strict,
    /// Factors rounded to TF32, 10 bits of mantissa, on the tensor cores.
    Tf32,
}

/// A GPU.
pub struct Cuda {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    kernels: BTreeMap<&'static str, CudaFunction>,
    /// What is allocated, and its address.
    memories: BTreeMap<u32, (CudaSlice<u8>, u64)>,
    allocated: u32,
}

/// The kernels for a compute capability, compiled once.
fn compiled(major: i32, minor: i32) -> Result<Ptx> {
    static KNOWN: Mutex<BTreeMap<(i32, i32), Ptx>> = Mutex::new(BTreeMap::new());
    let mut known = exec::lock(&KNOWN);
    if let Some(ptx) = known.get(&(major, minor)) {
        return Ok(ptx.clone());
    }
    let options = CompileOptions {
        // Products and sums round apart, as on the emulated card: kernels wait for memory, not for arithmetic.
        fmad: Some(false),
        options: vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++17".into()],
        name: Some("kernels.cu".into()),
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(kernels::program(), options).map_err(|e| failed("compile the kernels")(&e))?;
    known.insert((major, minor), ptx.clone());
    Ok(ptx)
}

fn failed(doing: &str) -> impl Fn(&dyn std::fmt::Display) -> Error + '_ {
    move |e| Error::environment(format!("CUDA: {doing}: {e}"))
}

impl Cuda {
    /// The GPU of this number, from 0; compiles the kernels for it.
    pub fn new(ordinal: usize, precision: Precision) -> Result<Self> {
        let open = failed("open the GPU");
        let context = CudaContext::new(ordinal).map_err(|e| open(&e))?;
        let stream = context.new_stream().map_err(|e| open(&e))?;
        let (major, minor) = context.compute_capability().map_err(|e| open(&e))?;
        let ptx = compiled(major, minor)?;
        let module = context.load_module(ptx).map_err(|e| failed("load the kernels")(&e))?;
        let mut all = BTreeMap::new();
        for name in kernels::names() {
            all.insert(name, module.load_function(name).map_err(|e| failed(name)(&e))?);
        }
        let blas = CudaBlas::new(stream.clone()).map_err(|e| failed("open cuBLAS")(&e))?;
        let mode = match precision {
            Precision::Strict => blas::cublasMath_t::CUBLAS_PEDANTIC_MATH,
            Precision::Tf32 => blas::cublasMath_t::CUBLAS_TF32_TENSOR_OP_MATH,
        };
        // SAFETY: the handle is open.
        unsafe { blas::cublasSetMathMode(*blas.handle(), mode) }
            .result()
            .map_err(|e| failed("set the precision")(&e))?;
        Ok(Cuda { context, stream, blas, kernels: all, memories: BTreeMap::new(), allocated: 0 })
    }

    fn memory(&mut self, memory: Memory) -> Result<&mut (CudaSlice<u8>, u64)> {
        self.memories.get_mut(&memory.id).ok_or_else(|| Error::defect(format!("CUDA: no memory {}", memory.id)))
    }

    /// The address of a byte.
    fn address(&self, memory: Memory, at: usize, bytes: usize) -> Result<u64> {
        inside("CUDA", memory, at, bytes)?;
        match self.memories.get(&memory.id) {
            Some((_, address)) => Ok(address + at as u64),
            None => Err(Error::defect(format!("CUDA: no memory {}", memory.id))),
        }
    }

    /// Where a matrix begins; all of it lies in its memory.
    fn matrix(&self, x: &Matrix, batch: usize, rows: usize, columns: usize) -> Result<u64> {
        let (rows, columns) = if x.turned { (columns, rows) } else { (rows, columns) };
        let reach = (batch - 1) * x.stride + (rows - 1) * x.pitch + columns;
        self.address(x.memory, 4 * x.at, 4 * reach)
    }
}

impl Card for Cuda {
    fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "a GPU without a name".to_string())
    }

    fn room(&self) -> Result<usize> {
        Ok(self.context.mem_get_info().map_err(|e| failed("ask for free memory")(&e))?.0)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory> {
        self.allocated += 1;
        // SAFETY: what is read before it is written is a defect of the engine, which the emulated card's NaN shows.
        let slice = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        let slice = slice.map_err(|e| {
            failed("allocate")(&e)
                .context(format!("{} MiB", bytes >> 20))
                .hint("fewer clients side by side, smaller batches")
        })?;
        let address = slice.device_ptr(&self.stream).0;
        self.memories.insert(self.allocated, (slice, address));
        Ok(Memory { id: self.allocated, bytes })
    }

    fn release(&mut self, memory: Memory) -> Result<()> {
        self.memory(memory)?;
        self.memories.remove(&memory.id);
        Ok(())
    }

    fn write(&mut self, memory: Memory, at: usize, bytes: &[u8]) -> Result<()> {
        inside("CUDA: write", memory, at, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let stream = self.stream.clone();
        let mut to = self.memory(memory)?.0.slice_mut(at..at + bytes.len());
        stream.memcpy_htod(bytes, &mut to).map_err(|e| failed("write")(&e))
    }

    fn read(&mut self, memory: Memory, at: usize, bytes: &mut [u8]) -> Result<()> {
        inside("CUDA: read", memory, at, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let stream = self.stream.clone();
        let from = self.memory(memory)?.0.slice(at..at + bytes.len());
        stream.memcpy_dtoh(&from, bytes).map_err(|e| failed("read")(&e))?;
        stream.synchronize().map_err(|e| failed("wait")(&e))
    }

    fn zero(&mut self, memory: Memory, at: usize, bytes: usize) -> Result<()> {
        inside("CUDA: zero", memory, at, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.stream.clone();
        let mut part = self.memory(memory)?.0.slice_mut(at..at + bytes);
        stream.memset_zeros(&mut part).map_err(|e| failed("zero")(&e))
    }

    fn launch(&mut self, kernel: &'static str, work: Work, args: &[Arg]) -> Result<()> {
        let blocks = match work {
            Work::Elements(n) => n.div_ceil(BLOCK),
            Work::Blocks(n) => n,
        };
        // A parameter's bytes are the first of its word: the machine is little-endian.
        let mut words = Vec::with_capacity(args.len());
        for arg in args {
            words.push(match *arg {
                Arg::At(memory, at) => self.address(memory, at, 0)?,
                Arg::Fill(memory, at, bytes) => self.address(memory, at, bytes)?,
                Arg::Absent => 0,
                Arg::Int(v) => u64::from(v as u32),
                Arg::Float(v) => u64::from(v.to_bits()),
            });
        }
        let function = self.kernels.get(kernel).ok_or_else(|| Error::defect(format!("CUDA: no kernel {kernel}")))?;
        let mut builder = self.stream.launch_builder(function);
        words.iter().for_each(|word| {
            builder.arg(word);
        });
        let grid_dim = (blocks as u32, 1, 1);
        let config = LaunchConfig { grid_dim, block_dim: (BLOCK as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the same launches, with every argument's kind and extent checked, run on the emulated card in tests.
        unsafe { builder.launch(config) }.map_err(|e| failed(kernel)(&e))?;
        Ok(())
    }

    fn multiply(&mut self, p: &Product) -> Result<()> {
        let [m, n, k] = p.size;
        let a = self.matrix(&p.a, p.batch, m, k)?;
        let b = self.matrix(&p.b, p.batch, k, n)?;
        let c = self.matrix(&p.c, p.batch, m, n)?;
        let turn = |x: &Matrix| match x.turned {
            true => blas::cublasOperation_t::CUBLAS_OP_T,
            false => blas::cublasOperation_t::CUBLAS_OP_N,
        };
        let (one, keep) = (1.0f32, if p.add { 1.0f32 } else { 0.0 });
        // cuBLAS counts by columns: of our rows it sees the transposes, so cᵀ = bᵀ·aᵀ.
        // SAFETY: the matrices lie in their memories, as checked above; the scalars outlive the call.
        unsafe {
            sgemm_strided_batched(
                *self.blas.handle(),
                turn(&p.b),
                turn(&p.a),
                n as i32,
                m as i32,
                k as i32,
                &one,
                b as *const f32,
                p.b.pitch as i32,
                p.b.stride as i64,
                a as *const f32,
                p.a.pitch as i32,
                p.a.stride as i64,
                &keep,
                c as *mut f32,
                p.c.pitch as i32,
                p.c.stride as i64,
                p.batch as i32,
            )
        }
        .map_err(|e| failed("multiply")(&e))
    }
}
