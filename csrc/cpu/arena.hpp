// Memory of one worker thread: grow-only, so that a batch worked off in descending order of size allocates
// for its first pair and never again.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace structloss {

template <class T>
class Buffer {
    static_assert(std::is_trivially_default_constructible_v<T>, "grown without initialisation");

  public:
    // Contents are indeterminate after a call.
    T* reserve(size_t count) {
        if (count > capacity_) {
            data_.reset();
            data_.reset(new T[count]);
            capacity_ = count;
        }
        return data_.get();
    }
    T* get() const { return data_.get(); }

  private:
    std::unique_ptr<T[]> data_;
    size_t capacity_ = 0;
};

}  // namespace structloss
