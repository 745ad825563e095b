//! Graphs run by ONNX Runtime as they are, for tests that compare them.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gststreamdiffusion::model::{Graph, TensorType};
use half::f16;
use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Outlet, Tensor, TensorElementType, ValueType};

/// Where ONNX Runtime looks for the external data of a model that it is given as bytes.
const FOLDER_OF_EXTERNAL_DATA: &str = "session.model_external_initializers_file_folder_path";

pub fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut folders: Vec<PathBuf> = std::env::var_os("ORT_DYLIB_PATH")
            .map(PathBuf::from)
            .into_iter()
            .collect();
        let program = std::env::current_exe().unwrap();
        folders.extend(program.ancestors().skip(1).take(2).map(Path::to_owned));
        let is_library = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            ["libonnxruntime.", "onnxruntime.dll"]
                .iter()
                .any(|start| name.starts_with(start))
        };
        let library = folders
            .iter()
            .flat_map(|folder| match folder.is_dir() {
                true => fs::read_dir(folder)
                    .unwrap()
                    .map(|e| e.unwrap().path())
                    .collect(),
                false => vec![folder.clone()],
            })
            .find(is_library)
            .expect("ORT_DYLIB_PATH names ONNX Runtime, or it is beside the test program");
        ort::init_from(library)
            .unwrap()
            .with_telemetry(false)
            .build()
            .unwrap()
    })
}

/// A session of a model given as bytes; `folder` is where its external data is.
pub fn from_memory(model: &[u8], folder: &Path) -> ort::Result<Session> {
    Session::builder(environment())?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_config_entry(FOLDER_OF_EXTERNAL_DATA, folder.to_str().unwrap())?
        .commit_from_memory(model)
}

/// The same on the first NVIDIA GPU, with products of matrices in full precision.
#[cfg(feature = "cuda")]
pub fn on_gpu(model: &[u8]) -> Session {
    let cuda = ort::ep::CUDA::default().with_tf32(false).build();
    Session::builder(environment())
        .unwrap()
        .with_execution_providers([cuda.error_on_failure()])
        .unwrap()
        .commit_from_memory(model)
        .unwrap()
}

/// `model` with functions in the place of ONNX Runtime's operators, from a file of the domain test.channels: a name as long as
/// theirs.
pub fn with_functions(model: &[u8], functions: &Path) -> Vec<u8> {
    let (from, to) = (b"com.microsoft", b"test.channels");
    let mut bytes = model.to_vec();
    let places: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|at| bytes[*at..].starts_with(from))
        .collect();
    for at in places {
        bytes[at..][..to.len()].copy_from_slice(to);
    }
    // Fields of a message may come in any order.
    bytes.extend(fs::read(functions).unwrap());
    bytes
}

pub fn from_file(path: &Path) -> Session {
    Session::builder(environment())
        .unwrap()
        .with_optimization_level(GraphOptimizationLevel::All)
        .unwrap()
        .commit_from_file(path)
        .unwrap()
}

/// A tensor of any type that the graphs have; f64 holds all their values.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub dims: Vec<usize>,
    pub data: Vec<f64>,
}

pub type Feed = BTreeMap<String, Array>;

impl Array {
    pub fn new(dims: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(dims.iter().product::<usize>(), data.len());
        Self {
            dims: dims.to_vec(),
            data,
        }
    }

    /// Numbers between -1 and 1 that look random.
    pub fn noise(dims: &[usize], seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            f64::from((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        Self::new(dims, (0..dims.iter().product()).map(next).collect())
    }

    /// The same, rounded to f16.
    pub fn rounded_noise(dims: &[usize], seed: u64) -> Self {
        let mut noise = Self::noise(dims, seed);
        for x in &mut noise.data {
            *x = f16::from_f64(*x).to_f64();
        }
        noise
    }

    /// Tensors put together along axis 0.
    pub fn stack(parts: &[&Array]) -> Self {
        let mut dims = parts[0].dims.clone();
        assert!(parts.iter().all(|p| p.dims == dims));
        dims[0] *= parts.len();
        Self::new(&dims, parts.iter().flat_map(|p| p.data.clone()).collect())
    }

    /// Part `i` of `of` along axis 0.
    pub fn part(&self, i: usize, of: usize) -> Self {
        let mut dims = self.dims.clone();
        dims[0] /= of;
        let size = self.data.len() / of;
        Self::new(&dims, self.data[i * size..][..size].to_vec())
    }

    pub fn of(value: &DynValue) -> Self {
        let (shape, data) = match value.dtype() {
            ValueType::Tensor { ty, .. } => match ty {
                TensorElementType::Float32 => {
                    let (shape, data) = value.try_extract_tensor::<f32>().unwrap();
                    (shape, data.iter().map(|x| f64::from(*x)).collect())
                }
                TensorElementType::Float16 => {
                    let (shape, data) = value.try_extract_tensor::<f16>().unwrap();
                    (shape, data.iter().map(|x| x.to_f64()).collect())
                }
                TensorElementType::Int64 => {
                    let (shape, data) = value.try_extract_tensor::<i64>().unwrap();
                    (shape, data.iter().map(|x| *x as f64).collect())
                }
                TensorElementType::Bool => {
                    let (shape, data) = value.try_extract_tensor::<bool>().unwrap();
                    (shape, data.iter().map(|x| f64::from(*x)).collect())
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        let dims: Vec<usize> = shape.iter().map(|d| *d as usize).collect();
        Self::new(&dims, data)
    }

    pub fn value(&self, input: &Outlet) -> SessionInputValue<'static> {
        let ValueType::Tensor { ty, .. } = input.dtype() else {
            panic!("{input:?}");
        };
        let dims = self.dims.clone();
        let data = self.data.iter();
        match ty {
            TensorElementType::Float32 => {
                let data: Vec<f32> = data.map(|x| *x as f32).collect();
                Tensor::from_array((dims, data)).unwrap().into()
            }
            TensorElementType::Float16 => {
                let data: Vec<f16> = data.map(|x| f16::from_f64(*x)).collect();
                Tensor::from_array((dims, data)).unwrap().into()
            }
            TensorElementType::Int64 => {
                let data: Vec<i64> = data.map(|x| *x as i64).collect();
                Tensor::from_array((dims, data)).unwrap().into()
            }
            TensorElementType::Bool => {
                let data: Vec<bool> = data.map(|x| *x != 0.0).collect();
                Tensor::from_array((dims, data)).unwrap().into()
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Runs `session` on those tensors of `feed` that it has inputs for.
pub fn run(session: &mut Session, feed: &Feed) -> Feed {
    let inputs: Vec<(Cow<str>, SessionInputValue)> = session
        .inputs()
        .iter()
        .map(|input| {
            let array = feed
                .get(input.name())
                .unwrap_or_else(|| panic!("nothing for {input:?}"));
            (input.name().to_owned().into(), array.value(input))
        })
        .collect();
    let outputs = session.run(inputs).unwrap();
    outputs
        .iter()
        .map(|(name, value)| (name.to_owned(), Array::of(&value)))
        .collect()
}

/// What an engine knows of the slow graph's outputs.
pub fn types(slow: &Session) -> Vec<TensorType> {
    slow.outputs()
        .iter()
        .map(|output| {
            let ValueType::Tensor { ty, shape, .. } = output.dtype() else {
                panic!("{output:?}");
            };
            let elem_type = match ty {
                TensorElementType::Float32 => 1,
                TensorElementType::Int64 => 7,
                TensorElementType::Bool => 9,
                TensorElementType::Float16 => 10,
                other => panic!("{other:?}"),
            };
            // No dimensions also mean that their number is unknown.
            let dims = (!shape.is_empty())
                .then(|| shape.iter().map(|d| (*d >= 0).then_some(*d)).collect());
            TensorType {
                name: output.name().to_owned(),
                elem_type,
                dims,
            }
        })
        .collect()
}

/// Largest difference of two tensors of the same shape, as a share of the largest value.
#[track_caller]
pub fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.dims, b.dims);
    let largest = |data: &mut dyn Iterator<Item = f64>| data.fold(0.0, f64::max);
    let values = largest(&mut b.data.iter().map(|x| x.abs()));
    assert!(values > 1e-3, "there is nothing in the output");
    largest(&mut a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs())) / values
}

/// The shapes of a graph's inputs for one row with a latent of this height and width; empty for a timestep without
/// dimensions.
pub fn shapes(path: &Path, (height, width): (usize, usize)) -> Vec<(String, Vec<usize>)> {
    let graph = Graph::open(path).unwrap();
    let shape = |port: &gststreamdiffusion::model::Port| {
        (0..port.rank())
            .map(|i| match port.fixed(i) {
                Some(fixed) => fixed,
                None if i == 0 => 1,
                None if port.rank() == 4 && i == 2 => height,
                None if port.rank() == 4 => width,
                None => 6,
            })
            .collect()
    };
    let ports = graph.inputs.iter();
    ports.map(|p| (p.name.clone(), shape(p))).collect()
}

/// Inputs of one row: different for different `seed`s, but for the timestep.
pub fn row(shapes: &[(String, Vec<usize>)], timestep: f64, seed: u64) -> Feed {
    shapes
        .iter()
        .zip(1..)
        .map(|((name, dims), i)| {
            let array = match name.as_str() {
                "timestep" => Array::new(dims, vec![timestep]),
                "time_ids" => Array::new(dims, vec![64.0, 64.0, 0.0, seed as f64, 64.0, 48.0]),
                _ => Array::noise(dims, seed * 100 + i),
            };
            (name.clone(), array)
        })
        .collect()
}

/// All rows as one input; a timestep without dimensions must be common to them.
pub fn batch(rows: &[Feed]) -> Feed {
    rows[0]
        .iter()
        .map(|(name, first)| {
            let parts: Vec<&Array> = rows.iter().map(|r| &r[name]).collect();
            let array = match first.dims.is_empty() {
                true => first.clone(),
                false => Array::stack(&parts),
            };
            (name.clone(), array)
        })
        .collect()
}
