// Drawings for a terminal: a progress bar and a loss curve.
#pragma once

#include <string>
#include <vector>

namespace ela::cli {

struct CurvePoint {
  double step = 0;
  double value = 0;  // points that are not finite are left out
};

/// A bar `width` columns wide, the share done in eighths of a column; ASCII: [####....].
std::string ProgressBar(double share, int width, bool unicode);

/// The curve with its axes and labels: `height` lines, each at most `width` columns. In Unicode
/// each character holds 2 x 4 dots. Points that share a column of dots are averaged. Empty if there
/// is no room or no finite point.
std::vector<std::string> DrawCurve(const std::vector<CurvePoint>& points, int width, int height,
                                   bool unicode);

}  // namespace ela::cli
