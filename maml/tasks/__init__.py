"""Where tasks come from: data sets, their files, their preparation."""
