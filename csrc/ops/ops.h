// All kinds of op.
#pragma once
#include <variant>

#include "attention.h"
#include "embed.h"
#include "linear.h"
#include "moe.h"
#include "norm.h"
#include "rows.h"

namespace glmlite {

using OpKind = std::variant<ops::Input, ops::Embed, ops::RmsNorm, ops::LayerNorm, ops::Linear, ops::HeadLinear,
                            ops::Attention, ops::LatentAttention, ops::Swiglu, ops::Gelu, ops::GeluErf, ops::Select,
                            ops::Concat, ops::Route, ops::Moe>;

}  // namespace glmlite
