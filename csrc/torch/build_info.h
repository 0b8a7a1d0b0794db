// What was built and which levels run here, by name. Python sees it as a dict.
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

namespace soho {

using BuildInfo = std::map<std::string, std::variant<std::string, std::vector<std::string>>>;

BuildInfo build_info();

}  // namespace soho
