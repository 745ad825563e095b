//! What a U-Net is tried with before frames are.

use super::given::Given;
use super::parts::{Feed, Rows, Slow, Source};
use crate::device::HostTensor;
use crate::engine::onnxruntime::fusing::{Attempt, trial_size, waves};
use crate::engine::onnxruntime::session::Session;
use crate::error::Error;
use crate::model::{ModelFolder, Port, Role};

/// What the live part `live` of the U-Net of `folder`, or all of it, takes for a made-up call of a usual size, in the order of
/// its inputs; `feeds` and `slow` say where its inputs but the latent come from. `None` where the graph does not tell how wide
/// the text embedding is.
pub fn call(
    folder: &ModelFolder,
    given: &Given,
    live: &Session,
    feeds: &[Feed],
    slow: Option<&Slow>,
) -> Attempt<Option<Vec<HostTensor>>> {
    let said = |e: Error| e.to_string();
    let file = folder.unet();
    let (width, height) = trial_size(folder, live.provider());
    let scale = folder.latent_scale();
    let size = (height / scale, width / scale);
    let Some(made_up) = given.made_up(folder, size) else {
        return Ok(None);
    };
    let value = |role| made_up.value(given, role, 0);
    let computed = slow.map_or(Ok(Vec::new()), |slow| slow.run(value));
    let computed = computed.map_err(said)?;

    let rows = file.batch().unwrap_or(1);
    let sample = file.input(Role::Sample).map(|port| &port.name);
    let mut feeds = feeds.iter();
    let input = |port: &Port| {
        if Some(&port.name) == sample {
            return Ok(waves(&[rows, folder.latent_channels(), size.0, size.1]));
        }
        let feed = feeds.next().ok_or("its parts do not fit together")?;
        let tensor = match feed.source {
            Source::Given(role) => value(role).map_err(said)?,
            Source::Computed(output) => computed[output].clone(),
        };
        Ok(match feed.rows {
            Rows::Common => tensor,
            Rows::Stacked | Rows::Broadcast(_) => repeated(tensor, rows),
        })
    };
    let inputs: Attempt<_> = live.inputs().iter().map(input).collect();
    inputs.map(Some)
}

/// A row `[1, …]` as often as there are `rows`, one below the other.
fn repeated(row: HostTensor, rows: usize) -> HostTensor {
    let mut shape = row.shape().to_vec();
    let Some(first) = shape.first_mut().filter(|_| rows > 1) else {
        return row;
    };
    *first *= rows;
    HostTensor::new(&shape, row.data().repeat(rows))
}
