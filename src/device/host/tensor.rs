/// A dense, row-major f32 tensor in main memory.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl HostTensor {
    /// A tensor of `shape`; `data` must hold as many values as the shape says.
    ///
    /// # Panics
    /// When it does not: that is a bug of the caller, never of user input.
    pub fn new(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "shape {shape:?}"
        );
        Self {
            shape: shape.to_vec(),
            data,
        }
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its values in row-major order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Its values, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Its values, taken out.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }
}
