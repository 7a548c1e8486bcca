//! Models by name, with every tensor's shape as published.

use optswap::internals::state::Parameter;

/// Name, what it is, and its parameters.
type Preset = (&'static str, &'static str, fn() -> Vec<Parameter>);

/// All presets.
pub const PRESETS: [Preset; 5] = [
    ("gpt2", "GPT-2, 124 M", gpt2),
    ("llama3-8b", "Llama 3, 8 B", || LLAMA3_8B.parameters()),
    ("llama3-70b", "Llama 3, 70 B", || LLAMA3_70B.parameters()),
    ("llama3-405b", "Llama 3.1, 405 B", || LLAMA3_405B.parameters()),
    ("moe-1t", "a mixture of 384 experts, 1 T (the shapes of Kimi K2)", mixture),
];

/// The preset of a name.
pub fn preset(name: &str) -> Option<&'static Preset> {
    static ALL: [Preset; 5] = PRESETS;
    ALL.iter().find(|(known, ..)| *known == name)
}

/// Tensors under a common prefix.
struct Layer<'a> {
    prefix: String,
    into: &'a mut Vec<Parameter>,
}

impl Layer<'_> {
    fn add(&mut self, name: &str, shape: &[usize]) {
        self.into.push(Parameter::new(format!("{}{name}", self.prefix), shape));
    }
}

/// Radford et al., 2019: 12 layers, tied output.
fn gpt2() -> Vec<Parameter> {
    const D: usize = 768;
    let mut all =
        vec![Parameter::new("wte.weight", [50257, D]), Parameter::new("wpe.weight", [1024, D])];
    for layer in 0..12 {
        let mut layer = Layer { prefix: format!("h.{layer}."), into: &mut all };
        for (name, shape) in [
            ("ln_1.weight", &[D][..]),
            ("ln_1.bias", &[D]),
            ("attn.c_attn.weight", &[D, 3 * D]),
            ("attn.c_attn.bias", &[3 * D]),
            ("attn.c_proj.weight", &[D, D]),
            ("attn.c_proj.bias", &[D]),
            ("ln_2.weight", &[D]),
            ("ln_2.bias", &[D]),
            ("mlp.c_fc.weight", &[D, 4 * D]),
            ("mlp.c_fc.bias", &[4 * D]),
            ("mlp.c_proj.weight", &[4 * D, D]),
            ("mlp.c_proj.bias", &[D]),
        ] {
            layer.add(name, shape);
        }
    }
    all.extend([Parameter::new("ln_f.weight", [D]), Parameter::new("ln_f.bias", [D])]);
    all
}

/// A model of the Llama 3 family (arXiv 2407.21783, table 3).
struct Llama {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
}

const LLAMA3_8B: Llama = Llama { layers: 32, hidden: 4096, heads: 32, kv_heads: 8, ffn: 14336 };
const LLAMA3_70B: Llama = Llama { layers: 80, hidden: 8192, heads: 64, kv_heads: 8, ffn: 28672 };
const LLAMA3_405B: Llama =
    Llama { layers: 126, hidden: 16384, heads: 128, kv_heads: 8, ffn: 53248 };
const LLAMA3_VOCABULARY: usize = 128_256;

impl Llama {
    fn parameters(&self) -> Vec<Parameter> {
        let d = self.hidden;
        let kv = d / self.heads * self.kv_heads;
        let mut all = vec![Parameter::new("model.embed_tokens.weight", [LLAMA3_VOCABULARY, d])];
        for layer in 0..self.layers {
            let mut layer = Layer { prefix: format!("model.layers.{layer}."), into: &mut all };
            for (name, shape) in [
                ("input_layernorm.weight", &[d][..]),
                ("self_attn.q_proj.weight", &[d, d]),
                ("self_attn.k_proj.weight", &[kv, d]),
                ("self_attn.v_proj.weight", &[kv, d]),
                ("self_attn.o_proj.weight", &[d, d]),
                ("post_attention_layernorm.weight", &[d]),
                ("mlp.gate_proj.weight", &[self.ffn, d]),
                ("mlp.up_proj.weight", &[self.ffn, d]),
                ("mlp.down_proj.weight", &[d, self.ffn]),
            ] {
                layer.add(name, shape);
            }
        }
        all.push(Parameter::new("model.norm.weight", [d]));
        all.push(Parameter::new("lm_head.weight", [LLAMA3_VOCABULARY, d]));
        all
    }
}

/// Kimi K2 (arXiv 2507.20534): 61 layers, the first one dense, 384 experts and a shared one.
fn mixture() -> Vec<Parameter> {
    const D: usize = 7168;
    const VOCABULARY: usize = 163_840;
    const EXPERT: usize = 2048;
    let mut all = vec![Parameter::new("model.embed_tokens.weight", [VOCABULARY, D])];
    for number in 0..61 {
        let mut layer = Layer { prefix: format!("model.layers.{number}."), into: &mut all };
        for (name, shape) in [
            ("input_layernorm.weight", &[D][..]),
            ("self_attn.q_a_proj.weight", &[1536, D]),
            ("self_attn.q_a_layernorm.weight", &[1536]),
            ("self_attn.q_b_proj.weight", &[64 * 192, 1536]),
            ("self_attn.kv_a_proj_with_mqa.weight", &[576, D]),
            ("self_attn.kv_a_layernorm.weight", &[512]),
            ("self_attn.kv_b_proj.weight", &[64 * 256, 512]),
            ("self_attn.o_proj.weight", &[D, 64 * 128]),
            ("post_attention_layernorm.weight", &[D]),
        ] {
            layer.add(name, shape);
        }
        if number == 0 {
            feed_forward(&mut layer, "mlp.", D, 18432);
            continue;
        }
        layer.add("mlp.gate.weight", &[384, D]);
        layer.add("mlp.gate.e_score_correction_bias", &[384]);
        for expert in 0..384 {
            feed_forward(&mut layer, &format!("mlp.experts.{expert}."), D, EXPERT);
        }
        feed_forward(&mut layer, "mlp.shared_experts.", D, EXPERT);
    }
    all.push(Parameter::new("model.norm.weight", [D]));
    all.push(Parameter::new("lm_head.weight", [VOCABULARY, D]));
    all
}

fn feed_forward(layer: &mut Layer<'_>, name: &str, hidden: usize, inner: usize) {
    layer.add(&format!("{name}gate_proj.weight"), &[inner, hidden]);
    layer.add(&format!("{name}up_proj.weight"), &[inner, hidden]);
    layer.add(&format!("{name}down_proj.weight"), &[hidden, inner]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use optswap::internals::state::Inventory;

    #[test]
    fn presets_have_as_many_parameters_as_published() {
        for (name, published) in [
            ("gpt2", 124_439_808),
            ("llama3-8b", 8_030_261_248),
            ("llama3-70b", 70_553_706_496),
            ("llama3-405b", 405_853_388_800),
            ("moe-1t", 1_026_408_232_448),
        ] {
            let (.., parameters) = preset(name).unwrap();
            assert_eq!(Inventory::new(parameters()).unwrap().total_elems(), published, "{name}");
        }
        assert!(preset("gpt3").is_none());
        assert_eq!(PRESETS.len(), 5);
    }
}
