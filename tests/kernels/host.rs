//! The kernels on the CPU: `kernels/host`, built with the system's C++ compiler.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use gststreamdiffusion::device::cuda::kernels::{Geometry, SOURCE};

use crate::case::{Case, Launch, Patch, Runner, address, patched};

/// A program that runs kernels.
pub struct Host {
    program: PathBuf,
}

/// As fast as they get.
pub fn plain() -> &'static Host {
    static HOST: LazyLock<Host> = LazyLock::new(|| Host::build("plain", &["-O2"]));
    &HOST
}

/// With every access to memory checked, and everything else that C++ leaves undefined.
pub fn sanitized() -> &'static Host {
    static HOST: LazyLock<Host> = LazyLock::new(|| {
        let checks = "-fsanitize=address,undefined,float-cast-overflow";
        let strict = "-fno-sanitize-recover=all";
        Host::build("sanitized", &["-O1", "-g", checks, strict])
    });
    &HOST
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

impl Host {
    fn build(name: &str, flags: &[&str]) -> Self {
        let source = folder().join(format!("kernels-{name}.cu"));
        fs::write(&source, SOURCE).unwrap();
        let program = folder().join(format!("kernels-{name}"));
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host");
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-Wall", "-Wextra", "-Werror"])
            // nvcc's pragmas; and vectors of 16 bytes are read where other types were written.
            .args(["-Wno-unknown-pragmas", "-fno-strict-aliasing"])
            .args(flags)
            .arg(format!("-DKERNELS=\"{}\"", source.display()))
            .args(["run.cpp", "launch.cpp", "threads.cpp"].map(|file| host.join(file)))
            .arg("-o")
            .arg(&program)
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}", compiler.display()));
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {log}", compiler.display());
        Self { program }
    }
}

/// The same with fewer threads in a block, which these kernels do not mind: a thread costs more here than what it does.
fn narrow(geometry: Geometry) -> Geometry {
    Geometry {
        block: 64,
        ..geometry
    }
}

/// What the program reads.
#[derive(Default)]
struct Input(Vec<u8>);

impl Input {
    fn number(&mut self, value: usize) {
        self.0.extend((value as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.extend(bytes);
    }

    fn patch(&mut self, patch: &Patch) {
        for number in [patch.at, patch.buffer, patch.offset] {
            self.number(number);
        }
    }

    fn launch(&mut self, name: &str, geometry: Geometry, argument: (Vec<u8>, Vec<Patch>)) {
        self.bytes(name.as_bytes());
        let (x, y) = geometry.grid;
        for number in [x, y, geometry.block, geometry.shared] {
            self.number(number as usize);
        }
        self.bytes(&argument.0);
        self.number(argument.1.len());
        for patch in &argument.1 {
            self.patch(patch);
        }
    }

    fn case(&mut self, case: &Case) {
        self.number(case.buffers.len());
        for buffer in &case.buffers {
            self.number(buffer.bytes.len());
            self.number(buffer.skew);
            self.0.extend(&buffer.bytes);
        }
        self.number(case.patches.len());
        for (buffer, patch) in &case.patches {
            self.number(*buffer);
            self.patch(patch);
        }
        self.number(case.launches.len());
        for launch in &case.launches {
            match launch {
                Launch::Rows {
                    kernel,
                    rows,
                    count,
                    longest,
                } => {
                    let pointer = address(*rows, 0).to_ne_bytes().to_vec();
                    let patch = Patch {
                        at: 0,
                        buffer: *rows,
                        offset: 0,
                    };
                    let geometry = kernel.geometry(*count, *longest);
                    self.launch(kernel.name(), geometry, (pointer, vec![patch]));
                }
                Launch::FrameToTensor {
                    plan,
                    frame,
                    tensor,
                } => {
                    let argument = plan.arguments(*frame, *tensor).unwrap();
                    let geometry = narrow(plan.geometry());
                    self.launch("frame_to_tensor", geometry, patched(&[argument]));
                }
                Launch::TensorToFrame {
                    plan,
                    tensor,
                    frame,
                } => {
                    let argument = plan.arguments(*tensor, *frame).unwrap();
                    let geometry = plan.geometry();
                    self.launch(plan.kernel().name(), geometry, patched(&[argument]));
                }
            }
        }
    }
}

impl Runner for Host {
    fn run(&self, cases: &[Case]) -> Vec<Vec<Vec<u8>>> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let mut input = Input::default();
        input.number(cases.len());
        for case in cases {
            input.case(case);
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = folder().join(format!("kernels-{}-{number}", std::process::id()));
        fs::write(&file, input.0).unwrap();
        let output = Command::new(&self.program)
            .stdin(Stdio::from(File::open(&file).unwrap()))
            .env("ASAN_OPTIONS", "detect_stack_use_after_return=0")
            .env("UBSAN_OPTIONS", "print_stacktrace=1")
            .output()
            .unwrap();
        fs::remove_file(&file).unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{log}", output.status);
        // Said once of contexts of any kind, also where they are announced to it, as here.
        let said = |line: &&str| !line.contains("swapcontext") && !line.trim().is_empty();
        assert_eq!(log.lines().filter(said).count(), 0, "{log}");
        let mut rest = &output.stdout[..];
        let mut take = |size| {
            let (bytes, after) = rest.split_at(size);
            rest = after;
            bytes.to_vec()
        };
        let results = cases
            .iter()
            .map(|case| case.buffers.iter().map(|b| take(b.bytes.len())).collect())
            .collect();
        assert!(rest.is_empty());
        results
    }
}
