// Flux-conserving Lanczos resampling, one thread per output pixel: warp3 and warp4 (half width 3 and 4).
// Formulas, positions in steps of 1/65536 pixel and the treatment of lost pixels as in resample.py.

#define PHASES 65536

// B-spline of the displacement: value of a tensor-product spline from the 4 + 4 basis values that are not zero.
__device__ static double spline_value(const double *c, const double *by, const double *bx, int width)
{
    double sum = 0.0;
    for (int j = 0; j < 4; ++j) {
        double row = 0.0;
        for (int i = 0; i < 4; ++i) row += c[j * width + i] * bx[i];
        sum += by[j] * row;
    }
    return sum;
}

// Weights of the pixels 1 - A .. A for a position f in 0 .. 1 after pixel 0; they sum to 1.
// sin(pi (f - t)) is sin(pi f) times a sign and cancels in the normalisation.
template <int A>
__device__ static void lanczos_weights(float f, float *w)
{
    if (f == 0.0f) {
        for (int t = 0; t < 2 * A; ++t) w[t] = t == A - 1 ? 1.0f : 0.0f;
        return;
    }
    float sum = 0.0f;
    for (int t = 0; t < 2 * A; ++t) {
        const float u = f - (float)(t + 1 - A);
        w[t] = sinf(u * (3.14159265358979f / A)) / (u * u) * (((t + A) & 1) ? 1.0f : -1.0f);
        sum += w[t];
    }
    for (int t = 0; t < 2 * A; ++t) w[t] /= sum;
}

// given: bit 0 variance, bit 1 flags, bit 2 bad; the pointers of what is not given are not read or written.
#define PARAMETERS                                                                                                     \
    const float *data, const float *variance, const unsigned int *flags, const unsigned char *bad, int given, int ny,  \
    int nx, const double *dx, const double *dy, const double *jacobian, int mx, const double *by, const int *first_y,  \
    const double *bx, const int *first_x, int ny_out, int nx_out, float *out, float *out_variance,                     \
    unsigned int *out_flags, unsigned char *inside, float *correlation
#define ARGUMENTS                                                                                                      \
    data, variance, flags, bad, given, ny, nx, dx, dy, jacobian, mx, by, first_y, bx, first_x, ny_out, nx_out, out,    \
    out_variance, out_flags, inside, correlation

template <int A>
__device__ static void warp_pixel(PARAMETERS)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx_out || y >= ny_out) return;
    const long long corner = (long long)first_y[y] * mx + first_x[x];
    const double xd = spline_value(dx + corner, by + 4 * y, bx + 4 * x, mx);
    const double yd = spline_value(dy + corner, by + 4 * y, bx + 4 * x, mx);
    if (!(x + xd > -0.5 && x + xd < nx - 0.5 && y + yd > -0.5 && y + yd < ny - 0.5)) return;
    const long long qx = llrint(xd * PHASES), qy = llrint(yd * PHASES);
    const int fx = (int)(qx & (PHASES - 1)), fy = (int)(qy & (PHASES - 1));
    const int x0 = x + (int)(qx >> 16), y0 = y + (int)(qy >> 16);
    float wx[2 * A], wy[2 * A];
    lanczos_weights<A>(fx / (float)PHASES, wx);
    lanczos_weights<A>(fy / (float)PHASES, wy);
    float total = 0.0f, total_variance = 0.0f, norm = 0.0f, lost = 0.0f, power_x = 0.0f, power_y = 0.0f;
    unsigned int bits = 0;
    for (int j = 0; j < 2 * A; ++j) {
        const int yy = y0 + j + 1 - A;
        float row = 0.0f, row_variance = 0.0f;
        power_x += wx[j] * wx[j];
        power_y += wy[j] * wy[j];
        for (int i = 0; i < 2 * A; ++i) {
            const int xx = x0 + i + 1 - A;
            const float w = wx[i] * wy[j];
            const bool on = yy >= 0 && yy < ny && xx >= 0 && xx < nx;
            const long long at = (long long)yy * nx + xx;
            const bool next = (j == A - 1 || (j == A && fy)) && (i == A - 1 || (i == A && fx));
            if (on && next && (given & 2)) bits |= flags[at];
            if (!on || !isfinite(data[at]) || ((given & 1) && !isfinite(variance[at])) || ((given & 4) && bad[at])) {
                lost += fabsf(w);
                continue;
            }
            norm += w;
            row += wx[i] * data[at];
            if (given & 1) row_variance += wx[i] * wx[i] * variance[at];
        }
        total += wy[j] * row;
        total_variance += wy[j] * wy[j] * row_variance;
    }
    const long long to = (long long)y * nx_out + x;
    if (given & 2) out_flags[to] = bits;
    if (lost >= 0.25f) return;
    const float area = (float)spline_value(jacobian + corner, by + 4 * y, bx + 4 * x, mx);
    const float scale = lost > 0.0f ? area / norm : area;
    inside[to] = 1;
    out[to] = total * scale;
    if (given & 1) {
        out_variance[to] = total_variance * scale * scale;
        correlation[to] = 1.0f / (area * power_x * power_y);
    }
}

extern "C" __global__ void warp3(PARAMETERS) { warp_pixel<3>(ARGUMENTS); }

extern "C" __global__ void warp4(PARAMETERS) { warp_pixel<4>(ARGUMENTS); }
