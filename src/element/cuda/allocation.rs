//! Who makes the buffers of frames in a GPU's memory.

use gst::subclass::prelude::*;

use crate::element::imp::StreamDiffusion;
use crate::element::{CAT, caps};

/// A pool that downstream offers: size of its buffers, least and greatest number of them.
type Offered = (gst::BufferPool, u32, u32, u32);

impl StreamDiffusion {
    /// Offers upstream buffers in the context that frames are computed in, so that they are not copied.
    pub(in crate::element) fn propose_cuda_memory(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        let (Some(caps), need_pool) = query.get_owned() else {
            return Ok(());
        };
        let Some(sharing) = self.sharing() else {
            return Ok(());
        };
        if !need_pool || caps::Memory::of_caps(&caps) != caps::Memory::Cuda {
            return Ok(());
        }
        let info = caps::video_info(&caps)
            .ok_or_else(|| gst::loggable_error!(CAT, "Allocation of no raw video"))?;
        let (pool, size) = sharing
            .pool(None, &caps, (info.size() as u32, 0, 0))
            .map_err(|error| gst::loggable_error!(CAT, "{error}"))?;
        query.add_allocation_pool(Some(&pool), size, 0, 0);
        Ok(())
    }

    /// Settles on the pool of output buffers: downstream's if it is in our context, else one of ours.
    pub(in crate::element) fn decide_cuda_memory(
        &self,
        query: &mut gst::query::Allocation,
        caps: &gst::Caps,
        offered: Option<Offered>,
        had_entry: bool,
    ) -> Result<(), gst::LoggableError> {
        let failed = |what: String| gst::loggable_error!(CAT, "{what}");
        let sharing = self
            .sharing()
            .ok_or_else(|| failed("No GPU for frames in a GPU's memory".into()))?;
        let info =
            caps::video_info(caps).ok_or_else(|| failed("Allocation of no raw video".into()))?;
        let least = info.size() as u32;
        let (offered, size, min, max) = match offered {
            Some((pool, size, min, max)) => (Some(pool), size.max(least), min, max),
            None => (None, least, 0, 0),
        };
        let (pool, size) = sharing
            .pool(offered, caps, (size, min, max))
            .map_err(|error| failed(error.to_string()))?;
        gst::debug!(CAT, imp = self, "Frames of {size} bytes from {pool:?}");
        if had_entry {
            query.set_nth_allocation_pool(0, Some(&pool), size, min, max);
        } else {
            query.add_allocation_pool(Some(&pool), size, min, max);
        }
        Ok(())
    }
}
