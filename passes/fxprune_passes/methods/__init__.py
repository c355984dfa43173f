"""Training-time methods from papers: each decides what goes, over the same gates, observers, plan and rewrites."""
