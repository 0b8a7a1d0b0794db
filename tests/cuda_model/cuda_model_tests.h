// One function per file of tests; main.cpp calls them.
#pragma once

void test_model();
void test_races();
void test_codebook_lookup_cuda();
void test_codebook_update_cuda();
void test_group_mask_cuda();
