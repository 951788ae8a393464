// Memory of one worker thread: grow-only, so that a batch worked off in descending order of size allocates
// for its first pair and never again. Aligned for the widest vectors.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace structloss {

template <class T>
class Buffer {
    static_assert(std::is_trivially_default_constructible_v<T>, "grown without initialisation");
    static constexpr std::align_val_t kAlignment{64};

  public:
    // Contents are indeterminate after a call.
    T* reserve(size_t count) {
        if (count > capacity_) {
            data_.reset();
            data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
            capacity_ = count;
        }
        return data_.get();
    }
    T* get() const { return data_.get(); }

  private:
    struct Release {
        void operator()(T* data) const { ::operator delete(data, kAlignment); }
    };
    std::unique_ptr<T, Release> data_;
    size_t capacity_ = 0;
};

}  // namespace structloss
