from soho_fast.cluster.kmeans import KMeans
class ResidualKMeans: pass
