// cpu_amx.cpp once more, on modelled tiles, as screen_amx_model.
#define SOHO_TILE_MODEL
#define screen_amx screen_amx_model
#include "kernels/codebook_lookup/cpu_amx.cpp"
