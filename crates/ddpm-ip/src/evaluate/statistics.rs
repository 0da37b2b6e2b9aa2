//! Files of statistics, as the reference's evaluator, pytorch-fid and clean-fid have them.

use super::network::FID_INCEPTION;
use crate::Error;
use crate::file::write_atomic;
use crate::npz::{Npz, NpzWriter};
use fidelity::Gaussian;
use std::path::Path;

/// The longest name of a feature network that is read.
const MOST_NAME: usize = 256;

/// What a set of images is reduced to. In a file: `mu`, `sigma` and, for sFID, `mu_s`, `sigma_s`, in float64; of this program's
/// also `features`, the name of the network in bytes, and `images`, their number. pytorch-fid and clean-fid write `mu` and `sigma`
/// alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// The network whose features they are of; FID-Inception where a file does not say.
    pub network: String,
    /// Number of images, where a file says it.
    pub images: Option<usize>,
    /// Of the features.
    pub features: Gaussian,
    /// Of the spatial features.
    pub spatial: Option<Gaussian>,
}

impl Statistics {
    /// Reads them from an npz; none if it holds no `mu`.
    ///
    /// # Errors
    /// A damaged file; values that are no mean and covariance.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let mut npz = Npz::open(path)?;
        if !npz.has("mu") {
            return Ok(None);
        }
        let mut gaussian = |mean: &str, covariance: &str| -> Result<Gaussian, Error> {
            let mu = npz.doubles(mean)?;
            let sigma = npz.doubles(covariance)?;
            let [d] = mu.shape[..] else {
                return Err(Error::file(path, format!("`{mean}` has shape {:?}, expected [d]", mu.shape)));
            };
            if sigma.shape != [d, d] || d == 0 {
                let message = format!("`{covariance}` has shape {:?}, `{mean}` needs [{d}, {d}]", sigma.shape);
                return Err(Error::file(path, message));
            }
            Gaussian::new(mu.values, sigma.values)
                .map_err(|e| Error::file(path, format!("`{mean}` and `{covariance}` are not valid statistics: {e}")))
        };
        let features = gaussian("mu", "sigma")?;
        let has_spatial = Npz::open(path)?.has("mu_s");
        let spatial = if has_spatial { Some(gaussian("mu_s", "sigma_s")?) } else { None };
        let network = if npz.has("features") {
            let name = npz.bytes("features")?.values;
            let is_name = |name: &String| name.len() <= MOST_NAME && name.bytes().all(|b| b.is_ascii_graphic());
            let name = String::from_utf8(name).ok().filter(is_name);
            name.ok_or_else(|| Error::file(path, "`features` is not the name of a feature network"))?
        } else {
            FID_INCEPTION.into()
        };
        let images = if npz.has("images") {
            npz.integers("images")?.values.first().and_then(|&n| usize::try_from(n).ok())
        } else {
            None
        };
        Ok(Some(Self { network, images, features, spatial }))
    }

    /// Writes them to an npz.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        self.write_with(path, "")
    }

    /// As [`Self::write`], with a comment in the archive.
    pub(super) fn write_with(&self, path: &Path, comment: &str) -> Result<(), Error> {
        write_atomic(path, |w| {
            let mut npz = NpzWriter::new(w);
            let pairs = [("mu", "sigma", Some(&self.features)), ("mu_s", "sigma_s", self.spatial.as_ref())];
            for (mean, covariance, gaussian) in pairs {
                if let Some(gaussian) = gaussian {
                    let d = gaussian.width();
                    npz.array::<f64>(mean, &[d], |push| push(gaussian.mean()))?;
                    npz.array::<f64>(covariance, &[d, d], |push| push(gaussian.covariance()))?;
                }
            }
            npz.array::<u8>("features", &[self.network.len()], |push| push(self.network.as_bytes()))?;
            if let Some(images) = self.images {
                npz.array::<i64>("images", &[], |push| push(&[images as i64]))?;
            }
            npz.finish_with(comment)
        })
    }
}
