//! A byte-level decoder-only transformer on the CPU, its parameters one flat vector.

use super::data::random_bits;
use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Result, Shape, Tensor, Var, bail};

const VOCABULARY: usize = 256;
const BLOCK_PARAMETERS: usize = 8;

/// Size of the transformer; the default has 3.3 million parameters.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream; the MLP is four times as wide.
    pub dim: usize,
    /// Attention heads, each `dim / heads` wide.
    pub heads: usize,
    /// Bytes the model looks at to predict the next one.
    pub context: usize,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig { layers: 4, dim: 256, heads: 4, context: 128 }
    }
}

impl ModelConfig {
    /// Names and shapes of all parameters in inventory order. Matrices are `[inputs, outputs]`,
    /// the gains of norms `[dim]`.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (dim, wide) = (self.dim, 4 * self.dim);
        let mut list = vec![
            ("tokens.weight".to_string(), vec![VOCABULARY, dim]),
            ("positions.weight".to_string(), vec![self.context, dim]),
        ];
        for layer in 0..self.layers {
            let block: [(&str, Vec<usize>); BLOCK_PARAMETERS] = [
                ("norm1", vec![dim]),
                ("attn.query", vec![dim, dim]),
                ("attn.key", vec![dim, dim]),
                ("attn.value", vec![dim, dim]),
                ("attn.out", vec![dim, dim]),
                ("norm2", vec![dim]),
                ("mlp.up", vec![dim, wide]),
                ("mlp.down", vec![wide, dim]),
            ];
            for (name, shape) in block {
                list.push((format!("blocks.{layer}.{name}.weight"), shape));
            }
        }
        list.push(("norm.weight".to_string(), vec![dim]));
        list.push(("head.weight".to_string(), vec![dim, VOCABULARY]));
        list
    }

    /// Says what a user should change where no model can have this size.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let sizes = [
            ("layers", self.layers),
            ("dim", self.dim),
            ("heads", self.heads),
            ("context", self.context),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        if !self.dim.is_multiple_of(self.heads) {
            let (dim, heads) = (self.dim, self.heads);
            return Err(format!("dim ({dim}) must be a multiple of heads ({heads})"));
        }
        Ok(())
    }

    /// Writes the initial values of elements `offset..offset + out.len()` of parameter `param`
    /// (its place in the inventory). Every element depends on `seed`, `param` and its own index
    /// alone, so each rank can initialise any part of its shard without the others.
    pub fn fill_initial(&self, seed: u64, param: usize, offset: usize, out: &mut [f32]) {
        let Some((name, shape)) = self.parameters().into_iter().nth(param) else {
            return;
        };
        if shape.len() == 1 {
            return out.fill(1.0);
        }
        let std = self.initial_std(&name);
        for (index, value) in (offset as u64..).zip(out) {
            *value = (std * normal(seed, param as u64, index)) as f32;
        }
    }

    fn initial_std(&self, name: &str) -> f64 {
        let is_residual = name.ends_with("attn.out.weight") || name.ends_with("mlp.down.weight");
        match name {
            // Louder than the positions, so that the first steps already learn which byte
            // follows which.
            "tokens.weight" => 0.1,
            // The residual stream adds up two projections a layer: scaling them down keeps its
            // variance independent of depth.
            _ if is_residual => 0.02 / (2.0 * self.layers as f64).sqrt(),
            _ => 0.02,
        }
    }

    fn parameter_elements(&self) -> usize {
        let elements = |(_, shape): &(String, Vec<usize>)| shape.iter().product::<usize>();
        self.parameters().iter().map(elements).sum()
    }
}

/// A standard normal draw (Box-Muller).
fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    // Half a unit above a multiple of 2^-53: never 0, whose logarithm is infinite.
    let uniform = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let radius = (-2.0 * uniform(random_bits(seed, stream, 2 * index)).ln()).sqrt();
    let turn = uniform(random_bits(seed, stream, 2 * index + 1));
    radius * (std::f64::consts::TAU * turn).cos()
}

/// The transformer with its parameters.
pub struct Model {
    config: ModelConfig,
    parameters: Vec<Tensor>,
}

impl Model {
    /// A model whose parameters are all zero.
    pub fn new(config: ModelConfig) -> Result<Model> {
        let zeros = vec![0.0; config.parameter_elements()];
        let parameters = vec![];
        let mut model = Model { config, parameters };
        model.load(&zeros)?;
        Ok(model)
    }

    /// Copies all parameters from `flat`, where they lie end to end in inventory order.
    pub fn load(&mut self, flat: &[f32]) -> Result<()> {
        self.check_length(flat.len())?;
        self.parameters.clear();
        let mut rest = flat;
        for (_, shape) in self.config.parameters() {
            let (values, after) = rest.split_at(shape.iter().product());
            let variable = Var::from_slice(values, shape, &Device::Cpu)?;
            self.parameters.push(variable.into_inner());
            rest = after;
        }
        Ok(())
    }

    /// Mean cross-entropy of `windows`, each context + 1 bytes long, in nats per byte.
    /// Overwrites `gradients` with `loss_scale` times its derivatives by the parameters, laid out
    /// as for `load`.
    pub fn loss_and_gradients(
        &self,
        windows: &[&[u8]],
        loss_scale: f32,
        gradients: &mut [f32],
    ) -> Result<f32> {
        self.check_length(gradients.len())?;
        let loss = self.mean_cross_entropy(windows)?;
        let scaled =
            if loss_scale == 1.0 { loss.clone() } else { (&loss * f64::from(loss_scale))? };
        let store = scaled.backward()?;
        let mut rest = gradients;
        for parameter in &self.parameters {
            let Some(gradient) = store.get(parameter) else {
                bail!("a parameter takes no part in the loss");
            };
            let (values, after) = rest.split_at_mut(parameter.elem_count());
            values.copy_from_slice(&gradient.flatten_all()?.to_vec1::<f32>()?);
            rest = after;
        }
        loss.to_scalar()
    }

    /// Mean cross-entropy of `windows`, each context + 1 bytes long, in nats per byte.
    pub fn loss(&self, windows: &[&[u8]]) -> Result<f32> {
        // Without variables among the parameters no activation outlives its use.
        let frozen = Model {
            config: self.config.clone(),
            parameters: self.parameters.iter().map(Tensor::detach).collect(),
        };
        frozen.mean_cross_entropy(windows)?.to_scalar()
    }

    fn check_length(&self, elements: usize) -> Result<()> {
        let needed = self.config.parameter_elements();
        if elements != needed {
            bail!("the model has {needed} parameter elements, not {elements}");
        }
        Ok(())
    }

    fn mean_cross_entropy(&self, windows: &[&[u8]]) -> Result<Tensor> {
        let context = self.config.context;
        if windows.is_empty() || windows.iter().any(|window| window.len() != context + 1) {
            bail!("the model needs windows of its context + 1 ({context} + 1) bytes");
        }
        let inputs = byte_ids(windows.iter().map(|window| &window[..context]))?;
        let targets = byte_ids(windows.iter().map(|window| &window[1..]))?;
        let logits = self.logits(&inputs)?;
        let chosen = logits.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
        (logits.log_sum_exp(1)? - chosen)?.mean_all()
    }

    /// `[windows * context]` bytes to `[windows * context, 256]` scores for the byte after each.
    fn logits(&self, inputs: &Tensor) -> Result<Tensor> {
        let [tokens, positions, blocks @ .., norm, head] = &self.parameters[..] else {
            bail!("the model has no parameters");
        };
        let mut stream = self.embed(inputs, tokens, positions)?;
        for block in blocks.as_chunks().0 {
            stream = self.block(&stream, block)?;
        }
        rms_norm(&stream, norm)?.matmul(head)
    }

    fn block(&self, stream: &Tensor, parameters: &[Tensor; BLOCK_PARAMETERS]) -> Result<Tensor> {
        let [norm1, query, key, value, out, norm2, up, down] = parameters;
        let x = rms_norm(stream, norm1)?;
        let mixed = self.attention(&x.matmul(query)?, &x.matmul(key)?, &x.matmul(value)?)?;
        let stream = (stream + mixed.matmul(out)?)?;
        let x = rms_norm(&stream, norm2)?;
        let hidden = x.matmul(up)?.apply_op1(Gelu(gelu))?;
        stream + hidden.matmul(down)?
    }

    fn embed(&self, inputs: &Tensor, tokens: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let (context, dim) = (self.config.context, self.config.dim);
        let bytes = tokens.index_select(inputs, 0)?;
        let windows = bytes.reshape(((), context, dim))?;
        windows.broadcast_add(positions)?.reshape(((), dim))
    }

    /// Causal multi-head attention; all arguments and the result are `[windows * context, dim]`.
    fn attention(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        let head_width = (self.config.dim / self.config.heads) as f64;
        let query = (self.split_heads(query)? / head_width.sqrt())?;
        let scores = query.matmul(&self.split_heads(key)?.t()?)?;
        let weights = softmax(&scores.broadcast_add(&causal_mask(self.config.context)?)?)?;
        let mixed = weights.matmul(&self.split_heads(value)?)?;
        mixed.transpose(1, 2)?.reshape(((), self.config.dim))
    }

    /// `[windows * context, dim]` to `[windows, heads, context, dim / heads]`.
    fn split_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (context, heads) = (self.config.context, self.config.heads);
        let split = x.reshape(((), context, heads, self.config.dim / heads))?;
        split.transpose(1, 2)?.contiguous()
    }
}

fn byte_ids<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Tensor> {
    let ids: Vec<u32> = parts.flatten().map(|&byte| u32::from(byte)).collect();
    Tensor::new(ids, &Device::Cpu)
}

/// `[context, context]` to add to scores: minus infinity where a key lies after its query.
fn causal_mask(context: usize) -> Result<Tensor> {
    let mut cells = vec![0.0; context * context];
    for (query, keys) in cells.chunks_exact_mut(context).enumerate() {
        keys[query + 1..].fill(f32::NEG_INFINITY);
    }
    Tensor::from_vec(cells, (context, context), &Device::Cpu)
}

/// Softmax over the last dimension.
fn softmax(x: &Tensor) -> Result<Tensor> {
    // Relative to the largest score no exponential overflows; the result does not depend on it.
    let max = x.detach().max_keepdim(D::Minus1)?;
    let exp = x.broadcast_sub(&max)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Scales every row of `x` to a root mean square of 1, then by `gain`.
fn rms_norm(x: &Tensor, gain: &Tensor) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(gain)
}

/// GELU or its slope in one pass over the elements: as tensor operations they would be a dozen
/// passes and a third of a step's time.
struct Gelu(fn(f32) -> f32);

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("gelu needs a contiguous argument");
        };
        let values = &storage.as_slice::<f32>()?[start..end];
        let results = values.iter().map(|&x| self.0(x)).collect();
        Ok((CpuStorage::F32(results), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (x.apply_op1_no_bwd(&Gelu(gelu_slope))? * gradient).map(Some)
    }
}

// The usual tanh approximation of GELU, as x * logistic(GELU_RATE * (x + GELU_CUBE * x^3)).
const GELU_RATE: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
const GELU_CUBE: f32 = 0.044_715;

fn gelu_gate(x: f32) -> f32 {
    1.0 / (1.0 + (-GELU_RATE * (x + GELU_CUBE * x * x * x)).exp())
}

fn gelu(x: f32) -> f32 {
    x * gelu_gate(x)
}

fn gelu_slope(x: f32) -> f32 {
    let gate = gelu_gate(x);
    gate + gate * (1.0 - gate) * GELU_RATE * (x + 3.0 * GELU_CUBE * x * x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_match_finite_differences() -> Result<()> {
        let mut model = Model::new(ModelConfig { layers: 2, dim: 8, heads: 2, context: 6 })?;
        let windows: [&[u8]; 2] = [b"gradien", b"ts flow"];
        let elements = model.config.parameter_elements();
        let draw = |index| 0.3 * normal(1, 2, index) as f32;
        let flat: Vec<f32> = (0..elements as u64).map(draw).collect();
        model.load(&flat)?;
        let mut gradients = vec![f32::NAN; elements];
        model.loss_and_gradients(&windows, 1.0, &mut gradients)?;
        for index in (0..elements).step_by(13) {
            let mut loss_near = |distance: f32| {
                let mut near = flat.clone();
                near[index] += distance;
                model.load(&near)?;
                model.loss(&windows)
            };
            let slope = (loss_near(1e-2)? - loss_near(-1e-2)?) / 2e-2;
            let error = slope - gradients[index];
            assert!(error.abs() < 3e-4, "element {index}: {error}");
        }
        Ok(())
    }
}
