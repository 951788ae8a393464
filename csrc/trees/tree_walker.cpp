// Concrete syntax trees to post-order arrays: the compiled twin of `python_walk` in structloss/trees/walk.py,
// where the meaning of the rules stands. py-tree-sitter exports no C symbols, so this drives its public
// Python objects (TreeCursor, Node); what it saves is the interpreter between two calls.
#include "trees/tree_walker.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace structloss {
namespace {

namespace py = pybind11;
using Integers = py::array_t<int64_t>;

// The values are those of walk.py.
enum class Mode : int { dropped = -1, descend, transparent, atom, plain, string, text_if_leaf, root };
enum class Interpolation : int { never, prefix, escape };
constexpr int64_t error_kind = 1;
constexpr uint64_t field_multiplier = 0x9E3779B97F4A7C15;

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

py::object attribute(const char* type, const char* name) {
    return py::module_::import("tree_sitter").attr(type).attr(name);
}

// An attribute of the parser's types. Read through its C function where it has one: PyObject_GetAttr looks it
// up by name each time, a fifth of the walk.
class Getter {
  public:
    Getter(const char* type, const char* name) : descriptor_(attribute(type, name)) {
        if (Py_IS_TYPE(descriptor_.ptr(), &PyGetSetDescr_Type))
            direct_ = reinterpret_cast<PyGetSetDescrObject*>(descriptor_.ptr())->d_getset;
        else if (!(general_ = Py_TYPE(descriptor_.ptr())->tp_descr_get))
            throw py::type_error(std::string(type) + "." + name + " is no descriptor");
    }

    py::object of(const py::object& object) const {
        if (direct_) return checked(direct_->get(object.ptr(), direct_->closure));
        PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
        return checked(general_(descriptor_.ptr(), object.ptr(), type));
    }

  private:
    py::object descriptor_;
    PyGetSetDef* direct_ = nullptr;
    descrgetfunc general_ = nullptr;
};

// A method that moves a cursor and says whether it could, likewise.
class Move {
  public:
    explicit Move(const char* name) : method_(attribute("TreeCursor", name)) {
        if (!Py_IS_TYPE(method_.ptr(), &PyMethodDescr_Type)) return;
        const PyMethodDef* definition = reinterpret_cast<PyMethodDescrObject*>(method_.ptr())->d_method;
        if (definition->ml_flags == METH_NOARGS) direct_ = definition->ml_meth;
    }

    bool operator()(const py::object& cursor) const {
        PyObject* result =
            direct_ ? direct_(cursor.ptr(), nullptr) : PyObject_CallOneArg(method_.ptr(), cursor.ptr());
        return checked(result).is(py::handle(Py_True));
    }

  private:
    py::object method_;
    PyCFunction direct_ = nullptr;
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

// Labels of the nodes of one kind by their source text: forgets everything when it is full, like TextLabels.
class TextLabels {
  public:
    TextLabels(py::object label_of, size_t most) : label_of_(std::move(label_of)), most_(most) {}

    int64_t operator[](std::string_view text) {
        const size_t hash = std::hash<std::string_view>{}(text);
        const uint32_t found = places_[place(text, hash)];
        return found ? entries_[found - 1].label : add(text, hash);
    }

    void clear() {
        texts_.clear();
        entries_.clear();
        places_.assign(16, 0);
    }

  private:
    struct Entry {
        size_t hash, start, size;
        int64_t label;
    };

    // Where the text stands, or would.
    size_t place(std::string_view text, size_t hash) const {
        const size_t mask = places_.size() - 1;
        size_t at = hash & mask;
        while (places_[at] && !is(entries_[places_[at] - 1], text, hash)) at = (at + 1) & mask;
        return at;
    }

    bool is(const Entry& entry, std::string_view text, size_t hash) const {
        return entry.hash == hash && text == text_of(entry);
    }

    std::string_view text_of(const Entry& entry) const {
        return std::string_view(texts_).substr(entry.start, entry.size);
    }

    int64_t add(std::string_view text, size_t hash) {
        // Another thread may walk while Python computes the label.
        const int64_t label = label_of_(py::bytes(text.data(), text.size())).cast<int64_t>();
        if (entries_.size() >= most_) clear();
        entries_.push_back({hash, texts_.size(), text.size(), label});
        texts_ += text;
        size_t unplaced = entries_.size() - 1;
        if (2 * entries_.size() > places_.size()) {
            places_.assign(2 * places_.size(), 0);
            unplaced = 0;
        }
        for (; unplaced < entries_.size(); ++unplaced) {
            const Entry& entry = entries_[unplaced];
            places_[place(text_of(entry), entry.hash)] = static_cast<uint32_t>(unplaced + 1);
        }
        return label;
    }

    py::object label_of_;
    size_t most_;
    std::string texts_;
    std::vector<Entry> entries_;
    std::vector<uint32_t> places_ = std::vector<uint32_t>(16);  // in entries_, from 1; 0 is free
};

// Narrow, so that a batch of them leaves room in the cache for the parser.
struct Row {
    int64_t label;
    int32_t kind, parent, leftmost;
    uint32_t start, end;  // what tree-sitter counts with
};

// (sizes (B,), then (B, N): label, kind, parent, leftmost, and byte spans (B, N, 2)), padded with `pad`.
py::tuple padded(const std::vector<Row>& rows, const std::vector<int64_t>& sizes, int64_t pad) {
    const auto trees = static_cast<py::ssize_t>(sizes.size());
    const auto most =
        sizes.empty() ? 0 : static_cast<py::ssize_t>(*std::max_element(sizes.begin(), sizes.end()));
    Integers label({trees, most}), kind({trees, most}), parent({trees, most}), leftmost({trees, most}),
        span({trees, most, py::ssize_t{2}});
    int64_t *to_label = label.mutable_data(), *to_kind = kind.mutable_data(),
            *to_parent = parent.mutable_data(), *to_leftmost = leftmost.mutable_data(),
            *to_span = span.mutable_data();
    const Row* row = rows.data();
    for (const int64_t size : sizes) {
        for (const Row* last = row + size; row != last; ++row) {
            *to_label++ = row->label;
            *to_kind++ = row->kind;
            *to_parent++ = row->parent;
            *to_leftmost++ = row->leftmost;
            *to_span++ = row->start;
            *to_span++ = row->end;
        }
        for (auto* to : {&to_label, &to_kind, &to_parent, &to_leftmost})
            *to = std::fill_n(*to, most - size, pad);
        to_span = std::fill_n(to_span, 2 * (most - size), pad);
    }
    return py::make_tuple(Integers(trees, sizes.data()), label, kind, parent, leftmost, span);
}

// The compiled twin of `_table_columns` in structloss/trees/batch.py.
int64_t table_columns(const Integers& parent, const Integers& leftmost) {
    const auto its_parent = parent.unchecked<2>(), its_leftmost = leftmost.unchecked<2>();
    int64_t most = 0;
    for (py::ssize_t tree = 0; tree < parent.shape(0); ++tree) {
        int64_t as_given = 0, mirrored = 0;
        for (py::ssize_t node = 0; node < parent.shape(1) && its_leftmost(tree, node) >= 0; ++node) {
            const int64_t left = its_leftmost(tree, node), above = its_parent(tree, node);
            if (above >= parent.shape(1)) throw py::index_error("parent: no such node");
            if (above < 0 || its_leftmost(tree, above) != left) as_given += node - left + 2;
            if (above != node + 1) mirrored += node - left + 2;
        }
        most = std::max({most, as_given, mirrored});
    }
    return most;
}

class TreeWalker {
  public:
    TreeWalker(std::vector<std::vector<std::pair<int64_t, int>>> rules, std::vector<size_t> rules_below,
               std::vector<int64_t> kind_labels, const std::vector<py::object>& text_label,
               py::object prefix_label, std::vector<uint64_t> field_hashes, size_t most_labels,
               int interpolation)
        : rules_below_(std::move(rules_below)),
          kind_labels_(std::move(kind_labels)),
          prefix_labels_(std::move(prefix_label), most_labels),
          field_hashes_(std::move(field_hashes)),
          interpolation_(static_cast<Interpolation>(interpolation)) {
        for (const auto& label_of : text_label) text_labels_.emplace_back(label_of, most_labels);
        for (const auto& row : rules) {
            rules_.emplace_back();
            for (const auto& [kind, mode] : row) rules_.back().push_back({kind, static_cast<Mode>(mode)});
        }
    }

    // The trees that an iterable gives, each as (root, source).
    py::tuple walk(const py::iterable& trees, int64_t pad) {
        std::vector<Row> rows;
        std::vector<int64_t> sizes;
        for (const py::handle tree : trees) {
            const auto [root, source] = tree.cast<std::pair<py::object, py::object>>();
            const size_t before = rows.size();
            Walk(*this, py::bytes(source), rows).from(root);
            sizes.push_back(static_cast<int64_t>(rows.size() - before));
        }
        return padded(rows, sizes, pad);
    }

    void forget_labels() {
        for (TextLabels& labels : text_labels_) labels.clear();
        prefix_labels_.clear();
    }

  private:
    using Span = std::pair<int64_t, int64_t>;

    struct OpenNode {
        Rule rule;
        py::object node;  // where transparent
        Span span;        // where not
        int64_t leftmost;
        size_t first_root;
        const std::vector<Rule>* rules;  // of its children
        uint64_t field;                  // see `in_field`
    };

    class Walk {
      public:
        Walk(TreeWalker& walker, const py::bytes& source, std::vector<Row>& rows)
            : walker_(walker), source_(source), rows_(rows), first_(rows.size()) {}

        void from(const py::object& root) {
            const py::object cursor = root.attr("walk")();
            const size_t root_id = walker_.grammar_id(root);
            const Span span = walker_.span(root);
            if (span.second > static_cast<int64_t>(source_.size()))
                throw py::value_error("source: the tree was parsed from another one");
            open(root_id, {walker_.rules_[0][root_id].kind, Mode::root}, {}, span, 0);
            bool on_child = walker_.down_(cursor);
            while (true) {
                if (!on_child) {
                    close();
                    if (open_.empty()) return;
                    walker_.up_(cursor);
                } else if (enter(cursor)) {
                    if (walker_.down_(cursor)) continue;
                    close();
                }
                // At the end of the parent nothing follows but nodes of zero width.
                on_child = end_ < open_.back().span.second && walker_.right_(cursor);
            }
        }

      private:
        // Whether the node is open now; a leaf is finished, anything else is passed over.
        bool enter(const py::object& cursor) {
            py::object node = walker_.node_.of(cursor);
            const size_t id = walker_.grammar_id(node);
            const Rule rule = (*open_.back().rules)[id];
            if (rule.mode == Mode::dropped) return false;
            const uint64_t field = walker_.field_hash(cursor);
            // A transparent node seldom stays, so its span is read late. Below one of zero width nothing
            // stays.
            if (rule.mode == Mode::transparent) {
                open(id, rule, std::move(node), {0, std::numeric_limits<int64_t>::max()}, field);
                return true;
            }
            const Span span = walker_.span(node);
            // Zero width: a token that the parser invented, or an empty block behind an error.
            if (span.first == span.second) return false;
            if (rule.mode == Mode::plain) {
                add_leaf(rule.kind, in_field(walker_.kind_labels_[rule.kind], field), span);
            } else if (rule.mode == Mode::atom || (rule.mode == Mode::string && !has_parts(span))) {
                add_leaf(rule.kind, in_field(walker_.text_labels_[rule.kind][text_of(span)], field), span);
            } else {
                open(id, rule, {}, span, field);
                return true;
            }
            return false;
        }

        void open(size_t id, Rule rule, py::object node, Span span, uint64_t field) {
            const auto* rules = &walker_.rules_[walker_.rules_below_[id]];
            open_.push_back({rule, std::move(node), span, size(), roots_.size(), rules, field});
        }

        // The label of a node that stands in a field of its parent; 0 is no field. As in walk.py.
        static int64_t in_field(int64_t label, uint64_t field) {
            if (field == 0) return label;
            return static_cast<int64_t>(((static_cast<uint64_t>(label) ^ field) * field_multiplier) >> 1);
        }

        void close() {
            const OpenNode node = std::move(open_.back());
            open_.pop_back();
            const auto [kind, mode] = node.rule;
            const size_t kept = roots_.size() - node.first_root;
            if (mode != Mode::transparent) end_ = node.span.second;
            if (mode == Mode::transparent ? kept < 2 : mode == Mode::root && kept == 0 && kind != error_kind)
                return;
            const int64_t here = size();
            for (size_t i = node.first_root; i < roots_.size(); ++i)
                rows_[first_ + roots_[i]].parent = static_cast<int32_t>(here);
            roots_.resize(node.first_root);
            roots_.push_back(here);
            const Span span = mode == Mode::transparent ? walker_.span(node.node) : node.span;
            int64_t label = walker_.kind_labels_[kind];
            if (mode == Mode::string)
                label = walker_.prefix_labels_[string_prefix(text_of(span))];
            else if (mode == Mode::text_if_leaf && kept == 0)
                label = walker_.text_labels_[kind][text_of(span)];
            add(in_field(label, node.field), kind, node.leftmost, span);
        }

        void add_leaf(int64_t kind, int64_t label, Span span) {
            end_ = span.second;
            roots_.push_back(size());
            add(label, kind, size(), span);
        }

        void add(int64_t label, int64_t kind, int64_t leftmost, Span span) {
            rows_.push_back({label, static_cast<int32_t>(kind), -1, static_cast<int32_t>(leftmost),
                             static_cast<uint32_t>(span.first), static_cast<uint32_t>(span.second)});
        }

        int64_t size() const { return static_cast<int64_t>(rows_.size() - first_); }

        bool has_parts(Span span) const {
            const std::string_view text = text_of(span);
            return interpolates(text, source_.substr(span.first), walker_.interpolation_);
        }

        std::string_view text_of(Span span) const {
            return source_.substr(span.first, span.second - span.first);
        }

        TreeWalker& walker_;
        const std::string_view source_;
        std::vector<Row>& rows_;
        const size_t first_;  // of this tree's rows
        int64_t end_ = -1;    // of what was last finished
        std::vector<OpenNode> open_;
        std::vector<int64_t> roots_;  // finished subtrees that wait for their parent
    };

    // The last column of the rules is that of ERROR, whose own id lies far above the others.
    size_t grammar_id(const py::object& node) const {
        return std::min(static_cast<size_t>(to_integer(kind_id_.of(node))), rules_below_.size() - 1);
    }

    // Of the field that the cursor's node stands in, 0 where there is none or fields do not count.
    uint64_t field_hash(const py::object& cursor) const {
        if (field_hashes_.empty()) return 0;
        const py::object id = field_id_.of(cursor);
        return id.is_none() ? 0 : field_hashes_.at(static_cast<size_t>(to_integer(id)));
    }

    Span span(const py::object& node) const {
        return {to_integer(start_byte_.of(node)), to_integer(end_byte_.of(node))};
    }

    std::vector<std::vector<Rule>> rules_;
    std::vector<size_t> rules_below_;
    std::vector<int64_t> kind_labels_;
    std::vector<TextLabels> text_labels_;  // by kind
    TextLabels prefix_labels_;
    std::vector<uint64_t> field_hashes_;  // by field id; empty where fields do not count
    Interpolation interpolation_;
    const Getter field_id_{"TreeCursor", "field_id"}, node_{"TreeCursor", "node"},
        kind_id_{"Node", "kind_id"}, start_byte_{"Node", "start_byte"}, end_byte_{"Node", "end_byte"};
    const Move down_{"goto_first_child"}, right_{"goto_next_sibling"}, up_{"goto_parent"};
};

}  // namespace

void bind_tree_walker(py::module_& module) {
    py::class_<TreeWalker>(module, "TreeWalker")
        .def(py::init<std::vector<std::vector<std::pair<int64_t, int>>>, std::vector<size_t>,
                      std::vector<int64_t>, const std::vector<py::object>&, py::object, std::vector<uint64_t>,
                      size_t, int>(),
             py::kw_only(), py::arg("rules"), py::arg("rules_below"), py::arg("kind_labels"),
             py::arg("text_label"), py::arg("prefix_label"), py::arg("field_hashes"), py::arg("most_labels"),
             py::arg("interpolation"))
        .def("walk", &TreeWalker::walk, py::arg("trees"), py::arg("pad"))
        .def("forget_labels", &TreeWalker::forget_labels);
    module.def("table_columns", &table_columns, py::arg("parent").noconvert(),
               py::arg("leftmost").noconvert());
}

}  // namespace structloss
