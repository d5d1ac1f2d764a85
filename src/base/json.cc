#include "base/json.h"

#include <boost/json/monotonic_resource.hpp>
#include <boost/json/parser.hpp>
#include <boost/json/src.hpp>  // the library itself: in this file of the program only
#include <new>
#include <system_error>

namespace foresight {
namespace json = boost::json;

Result<json::value> ParseJson(std::string_view text, JsonLimits limits) {
  try {
    json::parse_options options;
    options.max_depth = limits.depth_max;
    json::parser parser(json::make_shared_resource<json::monotonic_resource>(), options);
    json::error_code error;
    size_t offset = parser.write(text.data(), text.size(), error);
    if (error == json::error::incomplete) {
      return InvalidArgument("JSON: the document ends too early, at byte {}", text.size());
    }
    if (error == json::error::too_deep) {
      return InvalidArgument("JSON: more than {} nested levels at byte {}", limits.depth_max, offset);
    }
    if (error) return InvalidArgument("JSON: {} at byte {}", error.message(), offset);
    return parser.release();
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("JSON: out of memory for a document of {} bytes", text.size());
  } catch (const std::exception& e) {  // a string or array longer than the library allows
    return InvalidArgument("JSON: {}", e.what());
  }
}

std::string_view JsonKindName(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
      return "an integer";
    case json::kind::double_:
      return "a fraction";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    case json::kind::object:
      return "an object";
  }
  return "nothing";
}

std::string JsonString(std::string_view text) {
  return boost::json::serialize(boost::json::string_view(text.data(), text.size()));
}

}  // namespace foresight
