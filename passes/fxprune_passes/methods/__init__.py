"""Training-time pruning methods from papers, built on the same gates, observers, plans and rewrites."""

from fxprune_passes.methods.bernoulli_layers import BernoulliLayers as BernoulliLayers
from fxprune_passes.methods.complexity_aware import ComplexityAware as ComplexityAware
from fxprune_passes.methods.entropy_guided import EntropyGuided as EntropyGuided
from fxprune_passes.methods.neuron_importance import NeuronImportance as NeuronImportance
