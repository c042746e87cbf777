"""Attention in the plainest PyTorch: the independent witness that jattn is compared with.

    weights = softmax over keys of ( score(query, key) + bias, where mask allows )
    output  = weights @ value

Everything is written out as loops, einsums and explicit softmaxes, so that it can be checked by reading.
Arguments are not validated, inputs are never changed in place, and nothing is remembered between calls.

Axes, the same letters everywhere:

    b batch · t query position · s key position · h query head · k key/value head
    d feature of query and key · e feature of value · m model width

Layout is "*b t h d". A mask is bool and True where a query may attend to a key. Logits and weights are at
least float32; an output has the dtype of value. A query that may attend to nothing gives zeros, with zero
gradients.
"""

from torch_ref import biases as biases
from torch_ref import masks as masks
from torch_ref import models as models
from torch_ref import nn as nn
from torch_ref.biases import alibi as alibi
from torch_ref.biases import alibi_slopes as alibi_slopes
from torch_ref.biases import relative as relative
from torch_ref.drop_in import dot_product_attention as dot_product_attention
from torch_ref.kernel_regression import nadaraya_watson as nadaraya_watson
from torch_ref.masks import all_of as all_of
from torch_ref.masks import causal as causal
from torch_ref.masks import causal_lower_right as causal_lower_right
from torch_ref.masks import dilated_window as dilated_window
from torch_ref.masks import lengths as lengths
from torch_ref.masks import neighbourhood as neighbourhood
from torch_ref.masks import prefix as prefix
from torch_ref.masks import segments as segments
from torch_ref.masks import sliding_window as sliding_window
from torch_ref.multi_head import attention as attention
from torch_ref.multi_head import attention_weights as attention_weights
from torch_ref.scores import additive as additive
from torch_ref.scores import boxcar as boxcar
from torch_ref.scores import constant as constant
from torch_ref.scores import dot_product as dot_product
from torch_ref.scores import epanechnikov as epanechnikov
from torch_ref.scores import gaussian as gaussian
from torch_ref.scores import squared_distance as squared_distance
from torch_ref.single_head import additive_attention as additive_attention
from torch_ref.single_head import single_head_attention as single_head_attention
from torch_ref.softmax import masked_logsumexp as masked_logsumexp
from torch_ref.softmax import masked_softmax as masked_softmax
from torch_ref.statistics import attention_statistics as attention_statistics
