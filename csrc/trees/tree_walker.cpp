// Concrete syntax trees to post-order arrays: the compiled twin of `python_walk` in structloss/trees/walk.py,
// where the meaning of the rules stands. py-tree-sitter exports no C symbols, so this drives its public
// Python objects (TreeCursor, Node); what it saves is the interpreter between two calls.
#include "trees/tree_walker.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace structloss {
namespace {

namespace py = pybind11;

// The values are those of walk.py.
enum class Mode : int { dropped = -1, descend, transparent, atom, plain, string, text_if_leaf, root };
enum class Interpolation : int { never, prefix, escape };
constexpr int64_t error_kind = 1;

struct Rule {
    int64_t kind;
    Mode mode;
};

py::object checked(PyObject* result) {
    if (!result) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

int64_t to_integer(const py::object& number) {
    const int64_t value = PyLong_AsLongLong(number.ptr());
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

bool moved(const py::object& move) {
    return checked(PyObject_CallNoArgs(move.ptr())).is(py::handle(Py_True));
}

// An attribute read through its descriptor: PyObject_GetAttr looks it up by name each time, a fifth of the
// walk.
class Attribute {
  public:
    Attribute(const char* type, const char* name)
        : descriptor_(py::module_::import("tree_sitter").attr(type).attr(name)),
          get_(Py_TYPE(descriptor_.ptr())->tp_descr_get) {
        if (!get_) throw py::type_error(std::string(type) + "." + name + " is no descriptor");
    }

    py::object of(const py::object& object) const {
        PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
        return checked(get_(descriptor_.ptr(), object.ptr(), type));
    }

  private:
    py::object descriptor_;
    descrgetfunc get_;
};

bool is_quote(char c) { return c == '\'' || c == '"'; }

std::string_view string_prefix(std::string_view text) {
    return text.substr(0, std::find_if(text.begin(), text.end(), is_quote) - text.begin());
}

// Whether a string literal keeps its parts; `rest` is the source from its start on.
bool interpolates(std::string_view text, std::string_view rest, Interpolation how) {
    if (how == Interpolation::prefix)
        return string_prefix(rest.substr(0, 3)).find_first_of("fFtT") != std::string_view::npos;
    if (how == Interpolation::escape)
        for (size_t i = 0; i + 1 < text.size(); ++i)
            if (text[i] == '\\' && text[++i] == '{') return true;
    return false;
}

struct Columns {
    std::vector<int64_t> label, kind, parent, leftmost, span;

    int64_t size() const { return static_cast<int64_t>(label.size()); }

    void add(int64_t its_label, int64_t its_kind, int64_t its_leftmost, int64_t start, int64_t end) {
        label.push_back(its_label);
        kind.push_back(its_kind);
        parent.push_back(-1);
        leftmost.push_back(its_leftmost);
        span.push_back(start);
        span.push_back(end);
    }

    py::object bytes() const {
        py::object memory = checked(PyByteArray_FromStringAndSize(nullptr, 6 * size() * sizeof(int64_t)));
        auto* out = reinterpret_cast<int64_t*>(PyByteArray_AS_STRING(memory.ptr()));
        for (const auto* column : {&label, &kind, &parent, &leftmost, &span})
            out = std::copy(column->begin(), column->end(), out);
        return memory;
    }
};

class TreeWalker {
  public:
    TreeWalker(std::vector<std::vector<std::pair<int64_t, int>>> rules, std::vector<size_t> rules_below,
               std::vector<int64_t> kind_labels, std::vector<py::object> text_labels,
               py::object prefix_labels, int interpolation)
        : rules_below_(std::move(rules_below)),
          kind_labels_(std::move(kind_labels)),
          text_labels_(std::move(text_labels)),
          prefix_labels_(std::move(prefix_labels)),
          interpolation_(static_cast<Interpolation>(interpolation)) {
        for (const auto& row : rules) {
            rules_.emplace_back();
            for (const auto& [kind, mode] : row) rules_.back().push_back({kind, static_cast<Mode>(mode)});
        }
    }

    py::object walk(const py::object& root, const py::bytes& source) const {
        return Walk(*this, source).from(root);
    }

  private:
    struct OpenNode {
        Rule rule;
        int64_t start, end, leftmost;
        size_t first_root;
        const std::vector<Rule>* rules;  // of its children
    };

    class Walk {
      public:
        Walk(const TreeWalker& walker, const py::bytes& source) : walker_(walker), source_(source) {}

        py::object from(const py::object& root) {
            const py::object cursor = root.attr("walk")();
            const py::object down = cursor.attr("goto_first_child"), up = cursor.attr("goto_parent"),
                             right = cursor.attr("goto_next_sibling");
            const size_t root_id = walker_.grammar_id(root);
            open(root_id, {walker_.rules_[0][root_id].kind, Mode::root}, walker_.span(root));
            bool on_child = moved(down);
            while (true) {
                if (!on_child) {
                    close();
                    if (open_.empty()) return columns_.bytes();
                    moved(up);
                } else if (enter(walker_.node_.of(cursor))) {
                    if (moved(down)) continue;
                    close();
                }
                on_child = moved(right);
            }
        }

      private:
        // Whether the node is open now; a leaf is finished, anything else is passed over.
        bool enter(const py::object& node) {
            const size_t id = walker_.grammar_id(node);
            const Rule rule = (*open_.back().rules)[id];
            if (rule.mode == Mode::dropped) return false;
            const auto span = walker_.span(node);
            // Zero width: a token that the parser invented, or an empty block behind an error.
            if (span.first == span.second) return false;
            const std::string_view text = text_of(span);
            if (rule.mode == Mode::plain) {
                add_leaf(rule.kind, walker_.kind_labels_[rule.kind], span);
            } else if (rule.mode == Mode::atom ||
                       (rule.mode == Mode::string &&
                        !interpolates(text, source_.substr(span.first), walker_.interpolation_))) {
                add_leaf(rule.kind, label_of(walker_.text_labels_[rule.kind], text), span);
            } else {
                open(id, rule, span);
                return true;
            }
            return false;
        }

        void open(size_t id, Rule rule, std::pair<int64_t, int64_t> span) {
            const auto* rules = &walker_.rules_[walker_.rules_below_[id]];
            open_.push_back({rule, span.first, span.second, columns_.size(), roots_.size(), rules});
        }

        void close() {
            const OpenNode node = open_.back();
            open_.pop_back();
            const auto [kind, mode] = node.rule;
            const size_t kept = roots_.size() - node.first_root;
            if (mode == Mode::transparent ? kept < 2 : mode == Mode::root && kept == 0 && kind != error_kind)
                return;
            const int64_t here = columns_.size();
            for (size_t i = node.first_root; i < roots_.size(); ++i) columns_.parent[roots_[i]] = here;
            roots_.resize(node.first_root);
            roots_.push_back(here);
            int64_t label = walker_.kind_labels_[kind];
            const std::string_view text = text_of({node.start, node.end});
            if (mode == Mode::string)
                label = label_of(walker_.prefix_labels_, string_prefix(text));
            else if (mode == Mode::text_if_leaf && kept == 0)
                label = label_of(walker_.text_labels_[kind], text);
            columns_.add(label, kind, node.leftmost, node.start, node.end);
        }

        void add_leaf(int64_t kind, int64_t label, std::pair<int64_t, int64_t> span) {
            roots_.push_back(columns_.size());
            columns_.add(label, kind, columns_.size(), span.first, span.second);
        }

        std::string_view text_of(std::pair<int64_t, int64_t> span) const {
            const auto [start, end] = span;
            if (start < 0 || end < start || end > static_cast<int64_t>(source_.size()))
                throw py::value_error("source: the tree was parsed from another one");
            return source_.substr(start, end - start);
        }

        static int64_t label_of(const py::object& labels, std::string_view text) {
            const py::object key = checked(PyBytes_FromStringAndSize(text.data(), text.size()));
            return to_integer(checked(PyObject_GetItem(labels.ptr(), key.ptr())));
        }

        const TreeWalker& walker_;
        const std::string_view source_;
        Columns columns_;
        std::vector<OpenNode> open_;
        std::vector<int64_t> roots_;  // finished subtrees that wait for their parent
    };

    // The last column of the rules is that of ERROR, whose own id lies far above the others.
    size_t grammar_id(const py::object& node) const {
        return std::min(static_cast<size_t>(to_integer(kind_id_.of(node))), rules_below_.size() - 1);
    }

    std::pair<int64_t, int64_t> span(const py::object& node) const {
        return {to_integer(start_byte_.of(node)), to_integer(end_byte_.of(node))};
    }

    std::vector<std::vector<Rule>> rules_;
    std::vector<size_t> rules_below_;
    std::vector<int64_t> kind_labels_;
    std::vector<py::object> text_labels_;
    py::object prefix_labels_;
    Interpolation interpolation_;
    const Attribute node_{"TreeCursor", "node"}, kind_id_{"Node", "kind_id"},
        start_byte_{"Node", "start_byte"}, end_byte_{"Node", "end_byte"};
};

}  // namespace

void bind_tree_walker(py::module_& module) {
    py::class_<TreeWalker>(module, "TreeWalker")
        .def(py::init<std::vector<std::vector<std::pair<int64_t, int>>>, std::vector<size_t>,
                      std::vector<int64_t>, std::vector<py::object>, py::object, int>(),
             py::kw_only(), py::arg("rules"), py::arg("rules_below"), py::arg("kind_labels"),
             py::arg("text_labels"), py::arg("prefix_labels"), py::arg("interpolation"))
        .def("walk", &TreeWalker::walk, py::arg("root"), py::arg("source"));
}

}  // namespace structloss
