#include "ops/cpu_tile.h"

const od_cpu_tile od_cpu_tiles[OD_CPU_TILES] = {
    {16, 2, 12, {13, 8}, {48, 96}, {256, 128}, 1 << 20},
    {8, 2, 6, {6, 4}, {36, 36}, {64, 64}, 1 << 19},
    {4, 3, 8, {8, 6}, {36, 36}, {256, 128}, 1 << 19},
    {4, 1, 4, {4, 4}, {36, 36}, {256, 128}, 1 << 19},
};
unsigned od_cpu_tile_width;

size_t od_cpu_tile_choose(const od_device *device) {
    const unsigned width = od_cpu_tile_width ? od_cpu_tile_width : od_device_get_info(device)->vector_width;
    size_t i = 0;
    if (od_cpu_tile_width ? od_cpu_tile_width == 1 : od_device_small_tiles(device))
        return OD_CPU_TILES - 1;
    while (i < OD_CPU_TILES - 2 && (unsigned)od_cpu_tiles[i].vw > width)
        i++;
    return i;
}

const od_cpu_tile *od_cpu_tile_of(const od_device *device) {
    return &od_cpu_tiles[od_cpu_tile_choose(device)];
}

/* The smaller tile costs about a tenth more for each channel. */
int od_cpu_tile_rows(const od_cpu_tile *tile, int channels) {
    const int *rows = tile->weight_rows;
    const int first = (channels + rows[0] - 1) / rows[0] * rows[0],
              second = (channels + rows[1] - 1) / rows[1] * rows[1];
    return first * 10 <= second * 11 ? rows[0] : rows[1];
}
